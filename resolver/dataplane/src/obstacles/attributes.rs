//! Netlink attributes, as they come: a kind, a length, octets. Whatever is cut short ends the list.
//!
//! Foreign rules are read here and not by the types of netlink-packet-netfilter: one attribute that those do not know
//! would make a whole dump unreadable.

/// Flags in an attribute's kind: nested, in network order.
const KIND_BITS: u16 = 0x3fff;
const HEADER: usize = 4;

/// A list of attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// All, in order.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(rest.get(2..HEADER)?.try_into().ok()?) & KIND_BITS;
            let octets = rest.get(HEADER..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, octets))
        })
    }

    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find_map(|(found, octets)| (found == kind).then_some(octets))
    }

    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    /// A number as nf_tables has it: 32 bits in network order.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn long(self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    pub(super) fn text(self, kind: u16) -> Option<String> {
        let octets = self.get(kind)?;
        let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
        Some(String::from_utf8_lossy(octets.get(..end)?).into_owned())
    }
}

/// Appends an attribute.
pub(super) fn append(message: &mut Vec<u8>, kind: u16, octets: &[u8]) {
    let length = u16::try_from(HEADER + octets.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(octets);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Appends a text with its final zero.
pub(super) fn append_text(message: &mut Vec<u8>, kind: u16, text: &str) {
    append(message, kind, &[text.as_bytes(), &[0]].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes_and_stops_where_octets_are_missing() {
        let mut message = Vec::new();
        append_text(&mut message, 1, "input");
        append(&mut message, 2 | 0x8000, &7_u32.to_be_bytes());
        let read = Attributes(&message);
        assert_eq!(read.text(1).as_deref(), Some("input"));
        assert_eq!(read.number(2), Some(7));
        assert_eq!(read.get(3), None);
        for cut in 0..message.len() {
            assert!(Attributes(&message[..cut]).iter().count() < 2);
        }
        // A length that is less than its own header.
        assert_eq!(Attributes(&[0, 0, 1, 0]).iter().count(), 0);
    }
}
