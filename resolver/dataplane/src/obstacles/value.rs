//! What is known of a value, bit by bit, and what a comparison with it can be said to give.
//!
//! A rule looks at octets of a packet of ours. Some we know (our address, the port), some we do not (the pod's address),
//! and of some we know a part (a client's port is in the upper half). So a comparison has three outcomes.

use std::cmp::Ordering;

/// What can be said of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    /// It does not match.
    No,
    /// It may match, but where it does something is out of the ordinary, and the reason is written where this is made.
    Unlikely,
    /// It may match.
    Maybe,
    /// It matches.
    Yes,
}

impl Truth {
    pub(super) fn of(known: bool) -> Self {
        if known { Self::Yes } else { Self::No }
    }

    /// Both must match.
    pub(super) fn and(self, other: Self) -> Self {
        self.min(other)
    }

    /// The opposite. What is unlikely to match is still not sure to fail, and the other way round.
    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Yes => Self::No,
            Self::Maybe | Self::Unlikely => self,
        }
    }

    pub(super) fn inverted_if(self, inverted: bool) -> Self {
        if inverted { self.not() } else { self }
    }

    /// Where nothing more is known than that it may be, it is `Maybe` at most for this reason.
    pub(super) fn unlikely_if(self, reason: bool) -> Self {
        if reason && self == Self::Maybe { Self::Unlikely } else { self }
    }
}

/// An octet of which some bits are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Octet {
    /// Zero where not known.
    value: u8,
    known: u8,
}

impl Octet {
    pub(super) const UNKNOWN: Self = Self { value: 0, known: 0 };

    pub(super) const fn known(value: u8) -> Self {
        Self { value, known: u8::MAX }
    }

    /// Only the bits of `mask` are known.
    pub(super) const fn partly(value: u8, mask: u8) -> Self {
        Self { value: value & mask, known: mask }
    }

    /// `octet & mask ^ xor`.
    pub(super) fn masked(self, mask: u8, xor: u8) -> Self {
        let known = self.known | !mask;
        Self { value: ((self.value & mask) ^ xor) & known, known }
    }

    fn least(self) -> u8 {
        self.value
    }

    fn most(self) -> u8 {
        self.value | !self.known
    }
}

/// Octets that are known.
pub(super) fn known(octets: &[u8]) -> Vec<Octet> {
    octets.iter().map(|octet| Octet::known(*octet)).collect()
}

/// Octets that are not.
pub(super) fn unknown(length: usize) -> Vec<Octet> {
    vec![Octet::UNKNOWN; length]
}

/// Whether the value is this one.
pub(super) fn equals(value: &[Octet], wanted: &[u8]) -> Truth {
    if value.len() != wanted.len() {
        return Truth::Maybe;
    }
    let pairs = || value.iter().zip(wanted);
    if pairs().any(|(octet, wanted)| (octet.value ^ wanted) & octet.known != 0) {
        return Truth::No;
    }
    if pairs().all(|(octet, _)| octet.known == u8::MAX) { Truth::Yes } else { Truth::Maybe }
}

/// Whether the value, in network order, lies between the two, both included.
pub(super) fn within(value: &[Octet], low: &[u8], high: &[u8]) -> Truth {
    if value.len() != low.len() || value.len() != high.len() {
        return Truth::Maybe;
    }
    let least: Vec<u8> = value.iter().map(|octet| octet.least()).collect();
    let most: Vec<u8> = value.iter().map(|octet| octet.most()).collect();
    if most.as_slice().cmp(low) == Ordering::Less || least.as_slice().cmp(high) == Ordering::Greater {
        Truth::No
    } else if least.as_slice().cmp(low) != Ordering::Less && most.as_slice().cmp(high) != Ordering::Greater {
        Truth::Yes
    } else {
        Truth::Maybe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_certain_from_what_may_be() {
        let port = known(&[0, 53]);
        assert_eq!(equals(&port, &[0, 53]), Truth::Yes);
        assert_eq!(equals(&port, &[0, 54]), Truth::No);
        assert_eq!(equals(&unknown(2), &[0, 53]), Truth::Maybe);
        assert_eq!(equals(&port, &[53]), Truth::Maybe, "not the same thing is compared");
        // A client's port: the upper half.
        let client = [Octet::partly(0x80, 0x80), Octet::UNKNOWN];
        assert_eq!(equals(&client, &[0, 53]), Truth::No);
        assert_eq!(within(&client, &[4, 0], &[0xff, 0xff]), Truth::Yes);
        assert_eq!(within(&client, &[0, 0], &[4, 0]), Truth::No);
        assert_eq!(within(&client, &[0x90, 0], &[0xff, 0xff]), Truth::Maybe);
    }

    #[test]
    fn knows_the_bits_that_a_mask_clears() {
        assert_eq!(Octet::UNKNOWN.masked(0, 0), Octet::known(0));
        assert_eq!(Octet::UNKNOWN.masked(0, 5), Octet::known(5));
        assert_eq!(Octet::known(0xff).masked(0x0f, 0), Octet::known(0x0f));
        assert_eq!(Octet::UNKNOWN.masked(0x0f, 0), Octet::partly(0, 0xf0));
    }
}
