//! Whether a response is kept, as what, and for how long.
//!
//! The classes are CoreDNS's (`plugin/pkg/response/typify.go`, `plugin/cache/cache.go` at 1.15.0). One difference: a
//! denial is kept no longer than the MINIMUM of its SOA, as RFC 2308, 5 demands; CoreDNS looks at TTLs alone.

use std::collections::HashSet;

use nodestub_wire::{Cursor, Flags, MAX_NAME, Rcode, Record, Reply, Section, rtype};

use crate::Kind;

/// What the Corefile says about lifetimes. All in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For answers with data.
    pub success: Bounds,
    /// For NXDOMAIN and NODATA.
    pub denial: Bounds,
    /// For SERVFAIL and NOTIMP; 0 keeps none (RFC 9520 wants 1 to 300).
    pub failure_ttl: u32,
}

/// A lower and an upper bound, in seconds. A Corefile may say `cache 3`, which is below the lower bound's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A shorter TTL is lifted to this.
    pub min: u32,
    /// A longer one is cut to this, even to less than `min`.
    pub max: u32,
}

impl Bounds {
    /// The TTL within the bounds, in seconds; the upper one has the last word (as CoreDNS `computeTTL`).
    pub fn apply(self, ttl: u32) -> u32 {
        ttl.max(self.min).min(self.max)
    }
}

/// What becomes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The TTL that every record is given, now and, lowered, later; in seconds.
    pub ttl: u32,
    /// As what it is kept; `None`: not at all.
    pub kind: Option<Kind>,
}

/// TTL of what has no record to take one from, in seconds (CoreDNS `MinimalDefaultTTL`).
const WITHOUT_RECORDS_TTL: u32 = 5;

/// Longest chain of CNAMEs that counts as an answer.
const MAX_CHAIN: usize = 12;

/// Judges a response that [`Reply::parse`] has accepted and that answers what was asked.
pub fn judge(packet: &[u8], reply: &Reply, limits: &Limits) -> Judgement {
    let class = Class::of(packet, reply);
    let ttl = match class {
        Class::Denial => limits.denial.apply(least_ttl(packet, reply, true)),
        Class::Failure => limits.failure_ttl,
        Class::Success | Class::Incomplete => limits.success.apply(least_ttl(packet, reply, false)),
        Class::Delegation | Class::Other => limits.success.apply(WITHOUT_RECORDS_TTL),
    };
    let kind = match class {
        Class::Success | Class::Delegation => Some(Kind::Success),
        // Without an SOA nobody has said how long the denial holds (RFC 2308, 5).
        Class::Denial => has_soa(reply).then_some(Kind::Denial),
        Class::Failure => Some(Kind::Denial),
        Class::Incomplete | Class::Other => None,
    };
    let keep = ttl > 0 && !reply.header.flags.has(Flags::TC);
    Judgement { ttl, kind: kind.filter(|_| keep) }
}

enum Class {
    /// Data that answers the question.
    Success,
    /// NXDOMAIN, or NOERROR that says that there is no such type.
    Denial,
    /// SERVFAIL or NOTIMP.
    Failure,
    /// Somebody else is said to know.
    Delegation,
    /// Data that does not answer the question, and no SOA: half of a CNAME chain.
    Incomplete,
    /// Everything else: never kept.
    Other,
}

impl Class {
    fn of(packet: &[u8], reply: &Reply) -> Self {
        if matches!(reply.qtype, rtype::AXFR | rtype::IXFR) {
            return Self::Other;
        }
        let has_answers = reply.section(Section::Answer).next().is_some();
        match reply.rcode() {
            Rcode::NOERROR if has_answers => {
                if answers_question(packet, reply) {
                    Self::Success
                } else if has_soa(reply) {
                    Self::Denial
                } else {
                    Self::Incomplete
                }
            }
            Rcode::NOERROR if has_soa(reply) => Self::Denial,
            Rcode::NOERROR if reply.section(Section::Authority).any(|r| r.rtype == rtype::NS) => {
                Self::Delegation
            }
            Rcode::NOERROR => Self::Success,
            // An NXDOMAIN below a CNAME: whose name does not exist is not ours to say again.
            Rcode::NXDOMAIN if has_answers => Self::Other,
            Rcode::NXDOMAIN => Self::Denial,
            Rcode::SERVFAIL | Rcode::NOTIMP => Self::Failure,
            _ => Self::Other,
        }
    }
}

fn has_soa(reply: &Reply) -> bool {
    reply.section(Section::Authority).any(|record| record.rtype == rtype::SOA)
}

fn least_ttl(packet: &[u8], reply: &Reply, denial: bool) -> u32 {
    let least = reply.records.iter().map(|record| record.ttl).min().unwrap_or(WITHOUT_RECORDS_TTL);
    match reply.soa_minimum(packet) {
        Some(minimum) if denial => least.min(minimum),
        _ => least,
    }
}

/// Whether the answer section has a record of the type that was asked, at the name that was asked or at the end of
/// the chain of CNAMEs that starts there. Two CNAMEs of one owner with different targets, and loops, do not.
fn answers_question(packet: &[u8], reply: &Reply) -> bool {
    let owner = |record: &Record| Cursor::new(packet, record.start).name();
    let mut name = reply.name.clone();
    let mut seen = HashSet::with_capacity(MAX_CHAIN);
    for _ in 0..=MAX_CHAIN {
        let mut target = None;
        for record in reply.section(Section::Answer) {
            if owner(record).as_ref() != Ok(&name) {
                continue;
            }
            if record.rtype == reply.qtype || reply.qtype == rtype::ANY {
                return true;
            }
            if record.rtype == rtype::CNAME {
                let Ok(next) = Cursor::new(packet, record.rdata_at).name() else { return false };
                if target.as_ref().is_some_and(|other| *other != next) {
                    return false;
                }
                target = Some(next);
            }
        }
        let Some(target) = target else { return false };
        debug_assert!(target.as_bytes().len() <= MAX_NAME, "a name that was walked");
        if !seen.insert(target.as_bytes().to_vec()) {
            return false;
        }
        name = target;
    }
    false
}
