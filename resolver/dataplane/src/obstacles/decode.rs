//! What the kernel says of nftables, as chains, rules and sets. Numbers are those of linux/netfilter/nf_tables.h.
//!
//! What is not known here becomes [`Expression::MayEnd`] or [`Expression::Some`]: a maybe, never a guess.

use super::attributes::Attributes;
use super::model::{BaseChain, ChainId, Element, Expression, Hook, Rule, Scope, Set, Table, Value, Verdict};
use super::sight::META_MARK;

pub(super) const FAMILY_INET: u8 = 1;
pub(super) const FAMILY_IPV4: u8 = 2;
pub(super) const FAMILY_IPV6: u8 = 10;

/// `NFT_SET_*`.
const SET_ANONYMOUS: u32 = 0x1;
const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_ELEM_*`.
const ELEMENT_INTERVAL_END: u32 = 0x1;
const ELEMENT_CATCHALL: u32 = 0x2;
const NF_DROP: u32 = 0;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`.
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_OF_DESTINATION: u32 = 1 << 1;
/// Lengths and offsets that make sense: no packet is longer.
const MAX_LENGTH: usize = 65_535;
/// The register for verdicts.
const VERDICT_REGISTER: u32 = 0;

pub(super) fn scope(family: u8) -> Option<Scope> {
    match family {
        FAMILY_INET => Some(Scope::Inet),
        FAMILY_IPV4 => Some(Scope::Ip),
        FAMILY_IPV6 => Some(Scope::Ip6),
        _ => None,
    }
}

/// A chain at one of the hooks that our packets pass. Chains of type nat never see an untracked packet.
pub(super) fn base_chain(family: u8, octets: &[u8]) -> Option<BaseChain> {
    let chain = Attributes(octets);
    let hook = chain.nested(4)?;
    if chain.text(7).as_deref() == Some("nat") {
        return None;
    }
    let table = Table { is_legacy: false, scope: scope(family)?, name: chain.text(1)? };
    Some(BaseChain {
        id: ChainId { table, name: chain.text(3)? },
        hook: Hook::of(hook.number(1)?)?,
        priority: i32::from_ne_bytes(hook.number(2)?.to_ne_bytes()),
        drops_the_rest: chain.number(5) == Some(NF_DROP),
    })
}

pub(super) fn rule(octets: &[u8]) -> Rule {
    let rule = Attributes(octets);
    let mut decoded = Rule { number: rule.long(3).unwrap_or(0), ..Rule::default() };
    for (_, one) in rule.nested(4).into_iter().flat_map(Attributes::iter) {
        let one = Attributes(one);
        let (name, data) = (one.text(1).unwrap_or_default(), one.nested(2).unwrap_or(Attributes(&[])));
        decoded.is_of_iptables |= matches!(name.as_str(), "counter" | "match" | "target");
        decoded.expressions.push(expression(&name, data).unwrap_or(Expression::MayEnd));
    }
    decoded
}

fn expression(name: &str, data: Attributes<'_>) -> Option<Expression> {
    let register = |kind| data.number(kind).and_then(register_octet);
    let length = |kind| {
        let number = data.number(kind).and_then(|number| usize::try_from(number).ok());
        number.filter(|number| *number <= MAX_LENGTH)
    };
    let value = |kind| Some(data.nested(kind)?.get(1)?.to_vec());
    Some(match name {
        "meta" => match (register(1), data.number(2)?) {
            (Some(to), key) => Expression::Meta { key, to },
            (None, META_MARK) => Expression::SetMark { from: register(3)? },
            (None, _) => Expression::Nothing,
        },
        "payload" => match register(1) {
            Some(to) => {
                Expression::Header { base: data.number(2)?, offset: length(3)?, length: length(4)?, to }
            }
            None => Expression::Nothing,
        },
        "ct" => match register(1) {
            Some(to) => Expression::Conntrack { key: data.number(2)?, to },
            None => Expression::Nothing,
        },
        "fib" => match data.number(2)? {
            FIB_ADDRESS_TYPE if data.number(3)? & FIB_OF_DESTINATION != 0 => {
                Expression::DestinationType { to: register(1)? }
            }
            FIB_ADDRESS_TYPE => Expression::Some { to: register(1)? },
            _ => Expression::Route { to: register(1)? },
        },
        "cmp" => Expression::Compare { from: register(1)?, operator: data.number(2)?, octets: value(3)? },
        "range" => Expression::Range {
            from: register(1)?,
            low: value(3)?,
            high: value(4)?,
            inverted: data.number(2)? != 0,
        },
        "bitwise" => match (value(4), value(5), data.number(6).unwrap_or(0)) {
            (Some(mask), Some(xor), 0) => {
                Expression::Mask { from: register(1)?, to: register(2)?, mask, xor }
            }
            _ => Expression::Some { to: register(2)? },
        },
        "byteorder" => {
            Expression::Swap { from: register(1)?, to: register(2)?, length: length(4)?, size: length(5)? }
        }
        "immediate" if data.number(1)? == VERDICT_REGISTER => {
            Expression::Verdict(verdict(data.nested(2)?.nested(2)?)?)
        }
        "immediate" => Expression::Constant { octets: value(2)?, to: register(1)? },
        "lookup" => Expression::Lookup {
            set: data.text(1)?,
            from: register(2)?,
            inverted: data.number(5).unwrap_or(0) & 1 != 0,
            to: register(3),
            is_verdict: data.number(3) == Some(VERDICT_REGISTER),
        },
        "match" => Expression::XtMatch { name: data.text(1)?, revision: revision(data)?, data: info(data) },
        "target" => Expression::XtTarget { name: data.text(1)?, revision: revision(data)?, data: info(data) },
        "reject" => Expression::Verdict(Verdict::Drop),
        "queue" => Expression::Verdict(Verdict::Queue),
        "counter" | "log" | "notrack" | "objref" | "last" | "dup" | "tproxy" => Expression::Nothing,
        // One that only remembers the packet; with an expression of its own or inverted, it may end the rule.
        "dynset"
            if data.get(7).is_none() && data.get(10).is_none() && data.number(9).unwrap_or(0) & 1 == 0 =>
        {
            Expression::Nothing
        }
        "numgen" | "rt" | "exthdr" | "xfrm" | "osf" => Expression::Some { to: register(1)? },
        "socket" | "tunnel" | "hash" => Expression::Some { to: register(2)? },
        _ => return None,
    })
}

fn revision(data: Attributes<'_>) -> Option<u8> {
    u8::try_from(data.number(2)?).ok()
}

fn info(data: Attributes<'_>) -> Vec<u8> {
    data.get(3).unwrap_or_default().to_vec()
}

/// The first octet of a register: four of sixteen octets, and over them sixteen of four.
fn register_octet(register: u32) -> Option<usize> {
    let octet = match register {
        1..=4 => register.checked_sub(1)?.checked_mul(16)?,
        8..=23 => register.checked_sub(8)?.checked_mul(4)?,
        _ => return None,
    };
    usize::try_from(octet).ok()
}

fn verdict(octets: Attributes<'_>) -> Option<Verdict> {
    let code = i32::from_ne_bytes(octets.number(1)?.to_ne_bytes());
    let chain = || octets.text(2);
    Some(match code {
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => match code & 0xff {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            _ => Verdict::Queue,
        },
    })
}

/// A set without its elements, and whether they are ends of intervals.
pub(super) fn set(octets: &[u8]) -> (Set, bool) {
    let set = Attributes(octets);
    let flags = set.number(3).unwrap_or(0);
    let key_length = set.number(5).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut parts: Vec<usize> = Vec::new();
    for (_, part) in set.nested(9).and_then(|desc| desc.nested(2)).into_iter().flat_map(Attributes::iter) {
        parts.extend(Attributes(part).number(1).and_then(|length| usize::try_from(length).ok()));
    }
    // A key of one part has intervals by their ends, one of several has each with both.
    let is_of_ends = flags & SET_INTERVAL != 0 && parts.len() < 2;
    if parts.len() < 2 {
        parts = vec![key_length];
    }
    (Set { parts, elements: Some(Vec::new()), is_anonymous: flags & SET_ANONYMOUS != 0 }, is_of_ends)
}

/// An element as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raw {
    key: Option<Vec<u8>>,
    last_key: Option<Vec<u8>>,
    is_end: bool,
    value: Option<Value>,
}

/// The elements in a message of a dump.
pub(super) fn elements(octets: &[u8]) -> impl Iterator<Item = Raw> {
    let list = Attributes(octets).nested(3);
    list.into_iter().flat_map(Attributes::iter).map(|(_, one)| {
        let one = Attributes(one);
        let octets = |kind| Some(one.nested(kind)?.get(1)?.to_vec());
        let flags = one.number(3).unwrap_or(0);
        let value = one.nested(2).and_then(|value| match value.nested(2) {
            Some(found) => verdict(found).map(Value::Verdict),
            None => value.get(1).map(|octets| Value::Octets(octets.to_vec())),
        });
        Raw {
            key: octets(1).filter(|_| flags & ELEMENT_CATCHALL == 0),
            last_key: octets(10),
            is_end: flags & ELEMENT_INTERVAL_END != 0,
            value,
        }
    })
}

/// Puts elements together; those of intervals come as a beginning, and an end that is not in it.
pub(super) fn join(mut raw: Vec<Raw>, is_of_ends: bool) -> Vec<Element> {
    let mut joined = Vec::with_capacity(raw.len());
    if !is_of_ends {
        joined.extend(raw.into_iter().map(|one| {
            let range = one.key.map(|key| (key.clone(), one.last_key.unwrap_or(key)));
            Element { range, value: one.value }
        }));
        return joined;
    }
    raw.sort_by(|one, other| (&one.key, !one.is_end).cmp(&(&other.key, !other.is_end)));
    let mut open: Option<(Vec<u8>, Option<Value>)> = None;
    for one in raw {
        let Some(key) = one.key else {
            joined.push(Element { range: None, value: one.value });
            continue;
        };
        if let Some((low, value)) = open.take() {
            joined.push(Element { range: Some((low, one_less(&key))), value });
        }
        if !one.is_end {
            open = Some((key, one.value));
        }
    }
    if let Some((low, value)) = open {
        let high = vec![u8::MAX; low.len()];
        joined.push(Element { range: Some((low, high)), value });
    }
    joined
}

fn one_less(key: &[u8]) -> Vec<u8> {
    let mut less = key.to_vec();
    for octet in less.iter_mut().rev() {
        let (lower, borrows) = octet.overflowing_sub(1);
        *octet = lower;
        if !borrows {
            break;
        }
    }
    less
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(key: &[u8], is_end: bool) -> Raw {
        Raw { key: Some(key.to_vec()), last_key: None, is_end, value: None }
    }

    #[test]
    fn puts_intervals_together_whatever_the_order() {
        // 1.0 to 1.255, 2.0 to 2.255 right behind it, and all from 9.0 on.
        let elements = vec![
            raw(&[9, 0], false),
            raw(&[3, 0], true),
            raw(&[0, 0], true),
            raw(&[2, 0], false),
            raw(&[1, 0], false),
        ];
        let ranges: Vec<_> = join(elements, true).into_iter().filter_map(|element| element.range).collect();
        let expected = [([1, 0], [1, 255]), ([2, 0], [2, 255]), ([9, 0], [255, 255])];
        assert_eq!(ranges, expected.map(|(low, high)| (low.to_vec(), high.to_vec())));
    }
}
