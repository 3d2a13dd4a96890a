//! Matches and targets of iptables, by their names, as both iptables-legacy and iptables over nftables have them.
//!
//! Those that say something of our packets are read (linux/netfilter/xt_*.h); any other match is a maybe.

use super::model::{Hook, Verdict};
use super::sight::Sight;
use super::value::{Octet, Truth, equals, within};

/// `XT_CONNTRACK_STATE`, the only one of its tests that does not fail for a packet without a connection.
const CONNTRACK_BY_STATE: u16 = 1;
/// `XT_CONNTRACK_STATE_*` and `XT_STATE_*`.
const STATE_INVALID: u16 = 1;
const CONNTRACK_UNTRACKED: u16 = 1 << 8;
const STATE_UNTRACKED: u16 = 1 << 6;
/// `RTN_LOCAL`, as a bit.
const ADDRESS_LOCAL: u16 = 1 << 2;
/// Targets that let the packet go on with the next rule.
const CONTINUE: [&str; 20] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "LED",
    "LOG",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TOS",
    "TRACE",
];

/// What a target does.
pub(super) enum Target {
    Continue,
    Mark([Octet; 4]),
    Verdict(Truth, Verdict),
}

/// Whether a match matches.
pub(super) fn matches(name: &str, revision: u8, data: &[u8], sight: &Sight<'_>) -> Truth {
    let known = match name {
        "comment" => Some(Truth::Yes),
        "conntrack" => conntrack(revision, data, sight),
        "state" => number(data, 0).map(|mask| {
            // A 32-bit number, of which only the lower half is used.
            by_state(
                if cfg!(target_endian = "big") { number(data, 2).unwrap_or(0) } else { mask },
                sight,
                STATE_UNTRACKED,
            )
        }),
        "mark" if revision == 1 => mark(data, sight),
        "udp" => ports(data, sight, 8),
        "tcp" => tcp(data, sight),
        "multiport" if revision == 1 => multiport(data, sight),
        "addrtype" if revision == 1 => address_type(data, sight),
        // It drops what comes by a way that is not its own; a pod's packet comes from where its route leads.
        "rpfilter" => Some(Truth::Unlikely),
        _ => None,
    };
    known.unwrap_or(Truth::Maybe)
}

/// What a target does that is no plain verdict.
pub(super) fn target(name: &str, revision: u8, data: &[u8], mark: &[Octet; 4]) -> Target {
    match name {
        "DROP" | "REJECT" => Target::Verdict(Truth::Yes, Verdict::Drop),
        "NFQUEUE" | "QUEUE" => Target::Verdict(Truth::Yes, Verdict::Queue),
        "MARK" if revision == 2 => Target::Mark(changed_mark(data, mark)),
        "MARK" => Target::Mark([Octet::UNKNOWN; 4]),
        _ if CONTINUE.contains(&name) => Target::Continue,
        // Whatever it does, it may end the packet's way here.
        _ => Target::Verdict(Truth::Maybe, Verdict::Accept),
    }
}

fn conntrack(revision: u8, data: &[u8], sight: &Sight<'_>) -> Option<Truth> {
    let (by, inverted) = (number(data, 146)?, number(data, 148)?);
    let mask = match revision {
        1 => u16::from(*data.get(150)?),
        2 | 3 => number(data, 150)?,
        _ => return None,
    };
    if by & CONNTRACK_BY_STATE == 0 {
        return Some(Truth::No);
    }
    Some(by_state(mask, sight, CONNTRACK_UNTRACKED).inverted_if(inverted & CONNTRACK_BY_STATE != 0))
}

fn by_state(mask: u16, sight: &Sight<'_>, untracked: u16) -> Truth {
    let (has_untracked, has_invalid) = (mask & untracked != 0, mask & STATE_INVALID != 0);
    match sight.conntrack_states() {
        (true, true) if has_untracked != has_invalid => Truth::Maybe,
        (true, _) => Truth::of(has_untracked),
        (false, _) => Truth::of(has_invalid),
    }
}

fn mark(data: &[u8], sight: &Sight<'_>) -> Option<Truth> {
    let (wanted, mask, inverted) = (data.get(..4)?, data.get(4..8)?, *data.get(8)? != 0);
    let masked: Vec<Octet> = sight.mark.iter().zip(mask).map(|(bits, mask)| bits.masked(*mask, 0)).collect();
    Some(equals(&masked, wanted).inverted_if(inverted))
}

/// `mark & ~mask ^ value`.
fn changed_mark(data: &[u8], mark: &[Octet; 4]) -> [Octet; 4] {
    let mut changed = [Octet::UNKNOWN; 4];
    let values = data.iter().zip(data.iter().skip(4));
    for (new, (old, (value, mask))) in changed.iter_mut().zip(mark.iter().zip(values)) {
        *new = old.masked(!mask, *value);
    }
    changed
}

/// Source and destination ports, each from one to another; the octet at `flags` inverts.
fn ports(data: &[u8], sight: &Sight<'_>, flags: usize) -> Option<Truth> {
    let inverted = *data.get(flags)?;
    let source = range(&sight.packet.source_port(), number(data, 0)?, number(data, 2)?);
    let destination = range(&sight.packet.destination_port(), number(data, 4)?, number(data, 6)?);
    Some(source.inverted_if(inverted & 1 != 0).and(destination.inverted_if(inverted & 2 != 0)))
}

fn tcp(data: &[u8], sight: &Sight<'_>) -> Option<Truth> {
    let (option, mask, wanted, inverted) = (*data.get(8)?, *data.get(9)?, *data.get(10)?, *data.get(11)?);
    let flags = Truth::of(sight.packet.tcp_flags() & mask == wanted).inverted_if(inverted & 4 != 0);
    let option = if option == 0 { Truth::Yes } else { Truth::Maybe };
    Some(ports(data, sight, 11)?.and(flags).and(option))
}

fn multiport(data: &[u8], sight: &Sight<'_>) -> Option<Truth> {
    let (of, count, inverted) = (*data.first()?, usize::from(*data.get(1)?), *data.get(47)? != 0);
    let (source, destination) = (sight.packet.source_port(), sight.packet.destination_port());
    let mut found = Truth::No;
    let mut place = 0;
    while place < count.min(15) {
        let low = number(data, 2 + 2 * place)?;
        let is_range = *data.get(32 + place)? != 0;
        if is_range {
            place += 1;
        }
        let high = number(data, 2 + 2 * place)?;
        if of != 1 {
            found = found.max(range(&source, low, high));
        }
        if of != 0 {
            found = found.max(range(&destination, low, high));
        }
        place += 1;
    }
    Some(found.inverted_if(inverted))
}

/// What comes in is for an address of this node; more is not known.
fn address_type(data: &[u8], sight: &Sight<'_>) -> Option<Truth> {
    let (source, destination, flags) = (number(data, 0)?, number(data, 2)?, *data.get(4)?);
    let to_us = matches!(sight.hook, Hook::Prerouting | Hook::Input);
    if source != 0 || !to_us || flags & !2 != 0 || cfg!(target_endian = "big") {
        return None;
    }
    Some(Truth::of(destination & ADDRESS_LOCAL != 0).inverted_if(flags & 2 != 0))
}

fn range(port: &[Octet; 2], low: u16, high: u16) -> Truth {
    within(port, &low.to_be_bytes(), &high.to_be_bytes())
}

/// A number of the machine's own order.
fn number(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}
