//! A query and its answer, as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrong;

/// The question for an address of `nNUMBER.zone`, IPv4 or IPv6.
pub(crate) fn query(id: u16, number: u32, zone: &str, is_ipv4: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend(id.to_be_bytes());
    // Recursion desired; one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let first = format!("n{number}");
    for (place, label) in std::iter::once(first.as_str()).chain(zone.split('.')).enumerate() {
        bytes.push(u8::try_from(label.len()).expect("a label is short"));
        // An answer keeps the case of the question.
        let is_upper = usize::from(id) >> (place % 16) & 1 == 1;
        bytes.extend(label.bytes().map(|byte| if is_upper { byte.to_ascii_uppercase() } else { byte }));
    }
    bytes.push(0);
    bytes.extend(if is_ipv4 { TYPE_A } else { TYPE_AAAA }.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes
}

/// An id for the query of that number; those that follow one another differ in many bits.
pub(crate) fn some_id(number: u32) -> u16 {
    let [_, _, high, low] = number.wrapping_mul(40503).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The id of a message.
pub(crate) fn id(message: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*message.first()?, *message.get(1)?]))
}

/// The one address in an answer to `asked`; whatever does not belong to it is wrong.
pub(crate) fn answer(asked: &[u8], message: &[u8]) -> Result<IpAddr, Wrong> {
    let header = message.get(..HEADER).ok_or(Wrong)?;
    let is_answer = header[2] & 0x80 != 0 && header[2] & 0x02 == 0 && header[3] & 0x0f == 0;
    // One question, one answer.
    if !is_answer || header[..2] != asked[..2] || header[4..8] != [0, 1, 0, 1] {
        return Err(Wrong);
    }
    if message.get(HEADER..asked.len()) != Some(&asked[HEADER..]) {
        return Err(Wrong);
    }
    let record = after_name(message.get(asked.len()..).ok_or(Wrong)?).ok_or(Wrong)?;
    // Type, class, TTL, length.
    let (fixed, data) = record.split_at_checked(10).ok_or(Wrong)?;
    let is_ipv4 = asked[asked.len() - 4..] == [0, 1, 0, 1];
    let of_type = if is_ipv4 { [0, 1, 0, 1] } else { [0, 28, 0, 1] };
    if fixed[..4] != of_type {
        return Err(Wrong);
    }
    match (is_ipv4, fixed[9]) {
        (true, 4) => data.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()).ok_or(Wrong),
        (false, 16) => data.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()).ok_or(Wrong),
        _ => Err(Wrong),
    }
}

fn after_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(*bytes.first()?);
        match length {
            0 => return bytes.get(1..),
            1..=63 => bytes = bytes.get(length + 1..)?,
            _ => return bytes.get(2..),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(asked: &[u8]) -> Vec<u8> {
        let mut bytes = asked.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = 1;
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 1, 2, 3]);
        bytes
    }

    #[test]
    fn takes_what_belongs_to_the_question() {
        let asked = query(77, 3, "who.test", true);
        assert_eq!(answer(&asked, &answered(&asked)), Ok([10, 1, 2, 3].into()));
    }

    #[test]
    fn refuses_whatever_does_not() {
        let asked = query(77, 3, "who.test", true);
        let good = answered(&asked);
        for other in [query(78, 3, "who.test", true), query(77, 4, "who.test", true)] {
            assert_eq!(answer(&other, &good), Err(Wrong));
        }
        // No answer; truncated; SERVFAIL; two questions; none and two answers.
        for (place, bits) in [(2, 0x80), (2, 0x02), (3, 0x02), (5, 3), (7, 1), (7, 3)] {
            let mut bad = good.clone();
            bad[place] ^= bits;
            assert_eq!(answer(&asked, &bad), Err(Wrong), "{place}");
        }
        for length in 0..good.len() {
            assert_eq!(answer(&asked, &good[..length]), Err(Wrong), "{length}");
        }
    }
}
