//! Chains of others that would drop our packets. An accept in a table of ours cannot undo a drop in another table, so
//! such a chain is found and named, and the line to add there is said.
//!
//! ```text
//! Desired ─▶ packet: ours, and their way ─┐
//! netlink ─▶ kernel, decode ─▶ model ─────┼─▶ judge (sight: rule by rule; xt: matches of iptables) ─▶ remedy ─▶ Report
//! getsockopt ─▶ sockopt, legacy ─▶ model ─┘     └─ wants more ─▶ kernel
//! ```
//!
//! Judging is a plain function of what was read. It is three-valued: a drop is said to be certain only where every rule
//! before it is understood; an expression that is not known is a maybe. **The trap it is for:** our packets are
//! untracked, so no `ct state established accept` ever lets one pass, and a chain that ends in a drop needs a word for
//! port 53 in both directions.
//!
//! Maybes that are not said, because they commonly are harmless (`value::Truth::Unlikely`):
//!
//! | rule | why |
//! | --- | --- |
//! | drops where the route back to the sender leads elsewhere (`fib saddr . iif oif missing`, `rpfilter`) | a pod's packet comes in where its route leads |
//! | drops senders of a named set | a list of who is banned; pods are not on it |
//! | drops by a device that is hardware | a pod's packets come by virtual devices |
//! | drops a mark that no rule before it sets | packets start without one |
//!
//! Not looked at: families `netdev`, `bridge` and `arp`; the chain `forward`, which ordinary queries pass while nobody
//! listens; eBPF programs; network policies that a CNI keeps elsewhere.

mod attributes;
mod decode;
mod judge;
mod kernel;
mod legacy;
mod model;
mod packet;
mod remedy;
mod sight;
mod sockopt;
mod value;
mod watch;
mod xt;

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use crate::desired::{Desired, TABLE};
use crate::link;
pub use model::{Hook, Scope, Table};
pub use packet::{Kind, Packet};
pub use remedy::Keeper;
pub use watch::Ears;

/// Chains that are named in a report; of more, only the number is said.
pub const MAX_FINDINGS: usize = 16;
/// Times that the judge may ask for more: rules lead from chain to chain at most 16 deep.
const MAX_ROUNDS: usize = 40;
/// Chains, and sets, that are read of others.
const MAX_READ: usize = 1024;

/// Looks at the rules of others in the namespace of the calling thread: who would drop packets of this wish?
///
/// Needs CAP_NET_ADMIN. Costs some milliseconds on a node with tens of thousands of rules: only chains that our packets
/// come to are read.
///
/// # Errors
/// The kernel refuses to list its rules.
pub async fn look(desired: &Desired) -> Result<Report, Error> {
    // Without a list, a device's name says nothing.
    let hardware = link::hardware().await.unwrap_or_default();
    let mut world = model::World {
        base: kernel::base_chains().await?,
        hardware: hardware.into_iter().map(|(index, name)| model::Device { index, name }).collect(),
        ..model::World::default()
    };
    world.base.retain(|base| base.id.table.name != TABLE || base.id.table.scope != Scope::Inet);
    let mut unseen: BTreeSet<String> = legacy::read(&mut world).into_iter().map(|unseen| unseen.0).collect();
    let packets = packet::packets(desired);
    let mut judgement = judge::judge(&world, &packets);
    for _ in 0..MAX_ROUNDS {
        if judgement.wants == judge::Wants::default() {
            break;
        }
        if !kernel::is_within_bounds(&world, &judgement.wants, MAX_READ) {
            unseen.insert(format!("more than {MAX_READ} chains or sets that DNS comes to"));
            break;
        }
        if kernel::read(&mut world, std::mem::take(&mut judgement.wants)).await? {
            unseen.insert("a part of a chain or a set, for it is too long".to_owned());
        }
        judgement = judge::judge(&world, &packets);
    }
    if judgement.is_partial {
        unseen.insert(format!("more than {} rules that DNS comes to", judge::MAX_STEPS));
    }
    Ok(report(&world, &judgement, unseen))
}

fn report(world: &model::World, judgement: &judge::Judgement, unseen: BTreeSet<String>) -> Report {
    let mut findings: Vec<Finding> = judgement
        .obstacles
        .iter()
        .filter_map(|(place, obstacle)| {
            let base = world.base.get(*place)?;
            let keeper = remedy::keeper(base, world);
            let culprits = obstacle.culprits.iter().map(|culprit| match culprit.rule {
                None => "its policy".to_owned(),
                Some(number) if base.id.table.is_legacy => {
                    format!("rule {number} of chain {}", shown(&culprit.chain.name))
                }
                Some(number) => format!("rule with handle {number} of chain {}", shown(&culprit.chain.name)),
            });
            Some(Finding {
                table: base.id.table.clone(),
                chain: base.id.name.clone(),
                hook: base.hook,
                keeper,
                is_certain: obstacle.packets.values().any(|certain| *certain),
                culprits: culprits.collect(),
                packets: obstacle.packets.keys().cloned().collect(),
                lines: remedy::lines(keeper, base, obstacle.packets.keys()).unwrap_or_default(),
            })
        })
        .collect();
    findings.sort_by(|one, other| {
        let key = |finding: &Finding| (!finding.is_certain, finding.table.clone(), finding.chain.clone());
        key(one).cmp(&key(other))
    });
    let more = findings.len().saturating_sub(MAX_FINDINGS);
    findings.truncate(MAX_FINDINGS);
    Report { findings, more, unseen: unseen.into_iter().collect() }
}

/// What a look has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The chains, those first that drop for certain; at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: usize,
    /// What could not be looked at, in words.
    pub unseen: Vec<String>,
}

/// A chain of somebody else's that would drop packets of ours, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub chain: String,
    /// Where in a packet's way it stands.
    pub hook: Hook,
    /// Who keeps it.
    pub keeper: Keeper,
    /// It drops at least one kind of packet for certain.
    pub is_certain: bool,
    /// What in it drops: rules, or its policy, in words.
    pub culprits: Vec<String>,
    /// What it drops.
    pub packets: Vec<Packet>,
    /// Commands that let our packets pass, to be run as they stand. None where the names are such that they cannot.
    pub lines: Vec<String>,
}

impl Finding {
    /// The table as nft and iptables call it.
    pub fn table_name(&self) -> String {
        let name = shown(&self.table.name);
        match (self.table.is_legacy, self.table.scope) {
            (true, Scope::Ip6) => format!("ip6tables-legacy {name}"),
            (true, _) => format!("iptables-legacy {name}"),
            (false, scope) => format!("{scope} {name}"),
        }
    }
}

/// What is wrong, without the lines.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_certain { "drops" } else { "may drop" };
        write!(f, "chain {} of table {} {how} ", shown(&self.chain), self.table_name())?;
        let kinds: BTreeSet<Kind> = self.packets.iter().map(|packet| packet.kind).collect();
        join(f, kinds)?;
        let ends: BTreeSet<(String, u16)> =
            self.packets.iter().map(|packet| (packet.address.to_string(), packet.port)).collect();
        f.write_str(" (")?;
        join(f, ends.iter().map(|(address, port)| format!("{address} port {port}")))?;
        let transports: BTreeSet<bool> = self.packets.iter().map(|packet| packet.is_tcp).collect();
        f.write_str(" over ")?;
        join(f, transports.iter().map(|is_tcp| if *is_tcp { "TCP" } else { "UDP" }))?;
        f.write_str(") by ")?;
        join(f, self.culprits.iter().take(MAX_FINDINGS))
    }
}

fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, parts: impl IntoIterator<Item = T>) -> fmt::Result {
    for (place, part) in parts.into_iter().enumerate() {
        if place > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{part}")?;
    }
    Ok(())
}

/// A name that somebody else chose, safe for a log.
fn shown(name: &str) -> String {
    if remedy::is_plain(name) { name.to_owned() } else { format!("{name:?}") }
}

/// Why the rules of others could not be looked at.
#[derive(Debug)]
pub enum Error {
    /// The netlink socket could not be opened or used.
    Socket {
        /// What was tried.
        step: &'static str,
        /// The system's word.
        cause: io::Error,
    },
    /// The kernel refused.
    Refused {
        /// What was tried.
        step: &'static str,
        /// The kernel's word.
        cause: io::Error,
    },
    /// The kernel did not answer in ten seconds.
    NoAnswer,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { step, cause } => write!(f, "{step}: {cause}")?,
            Self::Refused { step, cause } => write!(f, "the kernel refused to {step}: {cause}")?,
            Self::NoAnswer => f.write_str("read the rules of others: the kernel does not answer")?,
        }
        match self {
            Self::Refused { cause, .. } if cause.raw_os_error() == Some(libc::EPERM) => {
                write!(f, " ({})", crate::NEEDS_NET_ADMIN)
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket { cause, .. } | Self::Refused { cause, .. } => Some(cause),
            Self::NoAnswer => None,
        }
    }
}
