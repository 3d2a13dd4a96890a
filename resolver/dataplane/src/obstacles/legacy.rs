//! The tables of iptables-legacy, which nf_tables knows nothing of.
//!
//! They are asked for only where the kernel's list of them (`/proc/net/ip_tables_names`) says that this namespace has them, so that looking loads no
//! module and makes no table. [`parse`] is a plain function of the octets (linux/netfilter/x_tables.h).

use std::collections::HashMap;
use std::io;

use super::model::{BaseChain, ChainId, Expression, Fixed, Hook, Rule, Scope, Table, Verdict, World};
use super::sockopt::{self, GET_ENTRIES, GET_INFO};

/// Tables that may drop our packets, and their place among others. Table nat sees no untracked packet.
const TABLES: [(&str, i32); 4] = [("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)];
/// The tables that there are in this thread's namespace (`/proc/net` would be the main thread's).
const IPV4_LIST: &str = "/proc/thread-self/net/ip_tables_names";
const IPV6_LIST: &str = "/proc/thread-self/net/ip6_tables_names";
const HOOKS: usize = 5;
const NAME_OCTETS: usize = 32;
/// `struct ipt_getinfo`.
const INFO_OCTETS: usize = 84;
/// `struct ipt_get_entries`, in front of the entries.
const ENTRIES_HEADER: usize = 40;
/// The most octets of a table that are read: more than 100,000 rules.
const MAX_OCTETS: usize = 32 << 20;
/// A table that is changed while it is read is read again this many times.
const TRIES: usize = 4;
/// A match or a target begins with its length, name and revision.
const PART_HEADER: usize = 32;
/// `IPT_F_GOTO` and `IP6T_F_GOTO`, `IP6T_F_PROTO`.
const V4_GOTO: u8 = 0x02;
const V6_GOTO: u8 = 0x04;
const V6_PROTOCOL: u8 = 0x01;

/// What could not be looked at.
#[derive(Debug)]
pub(super) struct Unseen(pub(super) String);

/// Adds the tables of both families to the world.
pub(super) fn read(world: &mut World) -> Vec<Unseen> {
    let mut unseen = Vec::new();
    for (is_ipv4, list) in [(true, IPV4_LIST), (false, IPV6_LIST)] {
        let names = match std::fs::read_to_string(list) {
            Ok(names) => names,
            // No iptables-legacy in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        " (the kernel shows it to user and group root only: give the pod `supplementalGroups: [0]`)"
                    }
                    _ => "",
                };
                unseen.push(Unseen(format!("tables of iptables-legacy: {list}: {error}{hint}")));
                continue;
            }
        };
        for (table, priority) in
            TABLES.into_iter().filter(|(table, _)| names.lines().any(|name| name == *table))
        {
            if let Err(error) = read_table(world, is_ipv4, table, priority) {
                unseen.push(Unseen(format!("table {table} of iptables-legacy: {error}")));
            }
        }
    }
    unseen
}

fn read_table(world: &mut World, is_ipv4: bool, table: &str, priority: i32) -> io::Result<()> {
    for _ in 0..TRIES {
        let mut info = vec![0; INFO_OCTETS];
        write_name(&mut info, table);
        sockopt::ask(is_ipv4, GET_INFO, &mut info)?;
        let size = number(&info, INFO_OCTETS - 4).unwrap_or(0);
        let octets = usize::try_from(size).unwrap_or(usize::MAX);
        if octets > MAX_OCTETS {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{octets} octets of rules")));
        }
        let mut entries = vec![0; ENTRIES_HEADER + octets];
        write_name(&mut entries, table);
        if let Some(place) = entries.get_mut(NAME_OCTETS..NAME_OCTETS + 4) {
            place.copy_from_slice(&size.to_ne_bytes());
        }
        match sockopt::ask(is_ipv4, GET_ENTRIES, &mut entries) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            result => result?,
        };
        let entries = entries.get(ENTRIES_HEADER..).unwrap_or_default();
        return parse(world, is_ipv4, table, priority, &info, entries)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its rules do not read"));
    }
    Err(io::ErrorKind::Interrupted.into())
}

fn write_name(buffer: &mut [u8], name: &str) {
    for (octet, byte) in buffer.iter_mut().zip(name.bytes()) {
        *octet = byte;
    }
}

/// An entry: fixed part, matches, target.
struct Entry<'a> {
    start: usize,
    end: usize,
    octets: &'a [u8],
    target: &'a [u8],
    target_name: String,
}

/// Adds a table to the world. `None`: it does not read.
fn parse(
    world: &mut World,
    is_ipv4: bool,
    table: &str,
    priority: i32,
    info: &[u8],
    entries: &[u8],
) -> Option<()> {
    let scope = if is_ipv4 { Scope::Ip } else { Scope::Ip6 };
    let table = Table { is_legacy: true, scope, name: table.to_owned() };
    let id = |name: &str| ChainId { table: table.clone(), name: name.to_owned() };
    let valid = number(info, NAME_OCTETS)?;
    let offset = |at: usize| Some(usize::try_from(number(info, at)?).unwrap_or(usize::MAX));
    // Where the chain of each hook begins, and the entry that is its policy.
    let mut built_in = HashMap::new();
    let mut policies = Vec::new();
    for hook in 0..HOOKS {
        if valid & (1 << hook) != 0 {
            built_in.insert(offset(NAME_OCTETS + 4 + 4 * hook)?, hook);
            policies.push(offset(NAME_OCTETS + 4 + 4 * (HOOKS + hook))?);
        }
    }
    let all = split(is_ipv4, entries)?;
    // Where chains begin: rules lead to them by that.
    let mut begins: HashMap<usize, String> = HashMap::new();
    for entry in &all {
        if entry.target_name == "ERROR" {
            begins.insert(entry.end, text(entry.target.get(PART_HEADER..)?));
        }
    }
    let mut chain: Option<(ChainId, Option<Hook>, Vec<Rule>)> = None;
    let mut store = |chain: Option<(ChainId, Option<Hook>, Vec<Rule>)>, drops_the_rest: bool| {
        if let Some((id, hook, rules)) = chain {
            world.bodies.insert(id.clone(), rules);
            if let Some(hook) = hook {
                world.base.push(BaseChain { id, hook, priority, drops_the_rest });
            }
        }
    };
    for entry in &all {
        if let Some(hook) = built_in.get(&entry.start) {
            store(chain.take(), false);
            let name = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].get(*hook)?;
            chain = Some((id(name), Hook::of(u32::try_from(*hook).ok()?), Vec::new()));
        } else if entry.target_name == "ERROR" {
            store(chain.take(), false);
            chain = Some((id(&text(entry.target.get(PART_HEADER..)?)), None, Vec::new()));
            continue;
        }
        if policies.contains(&entry.start) {
            let verdict = verdict(entry, false, &begins);
            store(chain.take(), verdict == Some(Verdict::Drop));
        } else if let Some((_, _, rules)) = &mut chain {
            let number = u64::try_from(rules.len()).unwrap_or(u64::MAX).saturating_add(1);
            rules.push(rule(is_ipv4, number, entry, &begins)?);
        }
    }
    store(chain, false);
    Some(())
}

/// Where target and next entry stand in an entry's head, and how long the head is.
const fn layout(is_ipv4: bool) -> (usize, usize) {
    if is_ipv4 { (88, 112) } else { (140, 168) }
}

fn split(is_ipv4: bool, entries: &[u8]) -> Option<Vec<Entry<'_>>> {
    let (lengths, head) = layout(is_ipv4);
    let mut all = Vec::new();
    let mut start = 0;
    while start < entries.len() {
        let rest = entries.get(start..)?;
        let (target, length) = (short(rest, lengths)?, short(rest, lengths + 2)?);
        let octets = rest.get(..length)?;
        if target < head || length < target + PART_HEADER {
            return None;
        }
        let target = octets.get(target..)?;
        let target_name = text(target.get(2..PART_HEADER - 1)?);
        all.push(Entry { start, end: start + length, octets, target, target_name });
        start += length;
    }
    Some(all)
}

fn rule(is_ipv4: bool, number: u64, entry: &Entry<'_>, begins: &HashMap<usize, String>) -> Option<Rule> {
    let (lengths, head) = layout(is_ipv4);
    let (fixed, goes_to) = fixed(is_ipv4, entry.octets)?;
    let mut expressions = vec![Expression::Fixed(Box::new(fixed))];
    let end = short(entry.octets, lengths)?;
    let mut place = head;
    while place < end {
        let part = entry.octets.get(place..end)?;
        let length = short(part, 0)?;
        if length < PART_HEADER {
            return None;
        }
        let part = part.get(..length)?;
        expressions.push(Expression::XtMatch {
            name: text(part.get(2..PART_HEADER - 1)?),
            revision: *part.get(PART_HEADER - 1)?,
            data: part.get(PART_HEADER..)?.to_vec(),
        });
        place += length;
    }
    expressions.push(match verdict(entry, goes_to, begins) {
        Some(verdict) => Expression::Verdict(verdict),
        None => Expression::XtTarget {
            name: entry.target_name.clone(),
            revision: *entry.target.get(PART_HEADER - 1)?,
            data: entry.target.get(PART_HEADER..)?.to_vec(),
        },
    });
    Some(Rule { number, is_of_iptables: true, expressions })
}

/// The verdict of the target without a name.
fn verdict(entry: &Entry<'_>, goes_to: bool, begins: &HashMap<usize, String>) -> Option<Verdict> {
    if !entry.target_name.is_empty() {
        return None;
    }
    let code = i32::from_ne_bytes(number(entry.target, PART_HEADER)?.to_ne_bytes());
    Some(match usize::try_from(code) {
        Ok(place) if place == entry.end && !goes_to => Verdict::Continue,
        Ok(place) => {
            let name = begins.get(&place)?.clone();
            if goes_to { Verdict::Goto(name) } else { Verdict::Jump(name) }
        }
        Err(_) => match code.checked_neg()?.checked_sub(1)? {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            3 => Verdict::Queue,
            4 => Verdict::Return,
            _ => Verdict::Continue,
        },
    })
}

/// `struct ipt_ip` and `struct ip6t_ip6`; and whether the target is gone to for good.
fn fixed(is_ipv4: bool, octets: &[u8]) -> Option<(Fixed, bool)> {
    let address = if is_ipv4 { 4 } else { 16 };
    let part = |at: usize, length: usize| Some(octets.get(at..at.checked_add(length)?)?.to_vec());
    let devices = 4 * address;
    let protocol_at = devices + 64;
    let protocol = u8::try_from(short(octets, protocol_at)?).unwrap_or(u8::MAX);
    let flags_at = if is_ipv4 { protocol_at + 2 } else { protocol_at + 3 };
    let (flags, inverted) = (*octets.get(flags_at)?, *octets.get(flags_at + 1)?);
    let has_protocol = if is_ipv4 { protocol != 0 } else { flags & V6_PROTOCOL != 0 };
    let fixed = Fixed {
        source: (part(0, address)?, part(2 * address, address)?),
        destination: (part(address, address)?, part(3 * address, address)?),
        input_device: (part(devices, 16)?, part(devices + 32, 16)?),
        output_device: (part(devices + 16, 16)?, part(devices + 48, 16)?),
        protocol: has_protocol.then_some(protocol),
        // `IPT_F_FRAG`; IPv6 has a match for it.
        fragments: is_ipv4 && flags & 0x01 != 0,
        inverted,
    };
    Some((fixed, flags & if is_ipv4 { V4_GOTO } else { V6_GOTO } != 0))
}

fn number(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn short(octets: &[u8], at: usize) -> Option<usize> {
    let octets: [u8; 2] = octets.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(usize::from(u16::from_ne_bytes(octets)))
}

fn text(octets: &[u8]) -> String {
    let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
    String::from_utf8_lossy(octets.get(..end).unwrap_or_default()).into_owned()
}
