//! The only place that keeps an offset into a packet by hand.
//!
//! Every read says whether the bytes were there. A name that is skipped is checked as it is passed: labels of at
//! most 63 bytes, at most 255 bytes in all once its pointers are followed, pointers strictly backward (so there can
//! be no loop), to what ends before the name that they stand in (it was there first), and never into the header (which
//! is no name, and changes in every reply), reserved label types refused (RFC 1035, 4.1.4; RFC 9267 for what goes wrong
//! elsewhere).

use crate::header::HEADER;
use crate::name::{MAX_LABEL, MAX_NAME};

/// A packet, or a part of it, was not what the protocol allows. There is nothing a caller could do with more detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed DNS message")
    }
}

impl std::error::Error for Malformed {}

/// Reads a packet from front to back.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    packet: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at byte `at` of `packet`; an offset past the end reads nothing.
    pub fn new(packet: &'a [u8], at: usize) -> Self {
        Self { packet, at }
    }

    /// Offset of the next byte from the packet's start.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// The packet ends before.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(Malformed)?;
        let bytes = self.packet.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(bytes)
    }

    /// The next byte.
    ///
    /// # Errors
    /// The packet ends before.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        let byte = *self.packet.get(self.at).ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    /// The next two bytes, big-endian.
    ///
    /// # Errors
    /// The packet ends before.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?))
    }

    /// The next four bytes, big-endian.
    ///
    /// # Errors
    /// The packet ends before.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?))
    }

    /// Passes a name, compressed or not, and checks all of it.
    ///
    /// # Errors
    /// The name breaks a rule of the module comment, or the packet ends within it.
    pub fn skip_name(&mut self) -> Result<(), Malformed> {
        self.walk_name(|_, _| ())
    }

    /// Passes a name as [`Cursor::skip_name`] does, and refuses one that leads through bytes that will be written over:
    /// four at each of `ttl_offsets`, which ascend.
    ///
    /// # Errors
    /// As [`Cursor::skip_name`], and as said.
    pub(crate) fn skip_name_beside(&mut self, ttl_offsets: &[usize]) -> Result<(), Malformed> {
        let mut touches = false;
        self.walk_name(|at, part| {
            let before = ttl_offsets.partition_point(|offset| *offset < at + part.len());
            let last = before.checked_sub(1).and_then(|index| ttl_offsets.get(index));
            touches |= last.is_some_and(|offset| offset + 4 > at);
        })?;
        if touches { Err(Malformed) } else { Ok(()) }
    }

    /// Copies a name out, lower-cased and without compression.
    ///
    /// # Errors
    /// As [`Cursor::skip_name`].
    pub fn name(&mut self) -> Result<NameBuf, Malformed> {
        let mut name = NameBuf::default();
        self.walk_name(|_, part| {
            if part.first().is_some_and(|length| (1..=MAX_LABEL).contains(&usize::from(*length))) {
                name.push(part);
            }
        })?;
        name.finish();
        Ok(name)
    }

    /// Copies a name out without compression, its case kept. Allocates: the slow side's.
    ///
    /// # Errors
    /// As [`Cursor::skip_name`].
    pub fn name_as_written(&mut self) -> Result<Vec<u8>, Malformed> {
        let mut name = Vec::new();
        self.walk_name(|_, part| {
            if part.first().is_some_and(|length| (1..=MAX_LABEL).contains(&usize::from(*length))) {
                name.extend_from_slice(part);
            }
        })?;
        name.push(0);
        Ok(name)
    }

    /// Hands each part of a name to `visit`, with its offset: labels with their length byte, pointers, the root's zero.
    fn walk_name(&mut self, mut visit: impl FnMut(usize, &'a [u8])) -> Result<(), Malformed> {
        let mut length_so_far = 1; // the root's zero
        let mut at = self.at;
        let mut limit = self.at; // a pointer must lead to a place before every place seen so far
        let mut bound = self.packet.len(); // and what it leads to must end before the name that it stands in
        let mut end_in_place = None;
        loop {
            let length = usize::from(*self.packet.get(at).ok_or(Malformed)?);
            let part_length = match length {
                0 => 1,
                1..=MAX_LABEL => 1 + length,
                0xC0.. => 2,
                _ => return Err(Malformed), // label types 0x40 and 0x80 (RFC 6891, 5)
            };
            let part = self.packet.get(at..at + part_length).ok_or(Malformed)?;
            if at + part_length > bound {
                return Err(Malformed);
            }
            visit(at, part);
            match (length, part) {
                (0, _) => break,
                (0xC0.., &[high, low]) => {
                    let target = usize::from(u16::from_be_bytes([high & 0x3F, low]));
                    if !(HEADER..limit).contains(&target) {
                        return Err(Malformed);
                    }
                    end_in_place.get_or_insert(at + 2);
                    bound = limit;
                    limit = target;
                    at = target;
                }
                _ => {
                    length_so_far += part_length;
                    if length_so_far > MAX_NAME {
                        return Err(Malformed);
                    }
                    at += part_length;
                }
            }
        }
        self.at = end_in_place.unwrap_or(at + 1);
        Ok(())
    }
}

/// A name copied out of a packet: lower-cased, uncompressed, on the stack.
#[derive(Clone)]
pub struct NameBuf {
    bytes: [u8; MAX_NAME],
    length: u8,
}

impl Default for NameBuf {
    fn default() -> Self {
        Self { bytes: [0; MAX_NAME], length: 0 }
    }
}

impl NameBuf {
    /// Wire form, lower case, ending with the root's zero.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// An owned copy for the slow side.
    pub fn to_name(&self) -> crate::Name {
        crate::Name::from_wire(self.as_bytes()).unwrap_or_else(|_| crate::Name::root())
    }

    /// `label` has its length byte in front; the walk has checked that all labels fit.
    fn push(&mut self, label: &[u8]) {
        let start = usize::from(self.length);
        if let Some(place) = self.bytes.get_mut(start..start + label.len()) {
            place.copy_from_slice(label);
            // Length bytes are at most 63, below `A`: lower-casing leaves them alone.
            place.make_ascii_lowercase();
            self.length = u8::try_from(start + label.len()).unwrap_or(self.length);
        }
    }

    fn finish(&mut self) {
        // The byte after the last label is still 0, which is the root.
        self.length = self.length.saturating_add(1);
    }
}

impl std::fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NameBuf({})", self.to_name())
    }
}

impl PartialEq for NameBuf {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for NameBuf {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name at byte `at` behind a header, and where it ends, header not counted.
    fn name_at(body: &[u8], at: usize) -> Result<(String, usize), Malformed> {
        let packet = [&[0; HEADER], body].concat();
        let mut cursor = Cursor::new(&packet, HEADER + at);
        let name = cursor.name()?;
        Ok((name.to_name().to_string(), cursor.at() - HEADER))
    }

    #[test]
    fn follows_a_pointer_and_goes_on_behind_it() {
        let body = b"\x05Local\0\x07Cluster\xc0\x0crest";
        assert_eq!(name_at(body, 7), Ok(("cluster.local.".into(), 17)));
    }

    #[test]
    fn rejects_pointers_that_do_not_lead_backward() {
        for body in [
            b"\xc0\x0c".as_slice(), // to itself
            b"\xc0\x0e\xc0\x0c",    // forward
            b"\x01a\xc0\x0c",       // to its own start: a loop
            b"\x01a\x01b\xc0\x0e",  // into its own middle: a loop
            b"\x01a\xc0",           // cut off
            b"\x40a",               // reserved label type
            b"\x05ab",              // cut off
        ] {
            assert_eq!(name_at(body, 0), Err(Malformed), "{body:?}");
        }
    }

    #[test]
    fn rejects_pointers_to_what_runs_over_them() {
        // A label of four bytes that holds the name itself, and a zero behind it.
        assert_eq!(name_at(b"\x04\x01a\xc0\x0c\0", 1), Err(Malformed));
    }

    #[test]
    fn rejects_pointers_into_the_header() {
        for target in 0..12 {
            assert_eq!(name_at(&[1, b'a', 0xC0, target], 0), Err(Malformed), "{target}");
        }
    }

    #[test]
    fn rejects_names_that_grow_past_255_bytes_through_pointers() {
        let mut packet = vec![0; HEADER];
        for _ in 0..3 {
            packet.push(63);
            packet.extend([b'a'; 63]);
        }
        packet.push(0); // 193 bytes
        let second = packet.len();
        packet.push(61);
        packet.extend([b'b'; 61]);
        packet.extend([0xC0, 12]); // 62 more: 255
        assert_eq!(Cursor::new(&packet, second).name().unwrap().as_bytes().len(), 255);
        let third = packet.len();
        packet.extend([1, b'c', 0xC0, u8::try_from(second).unwrap()]);
        assert_eq!(Cursor::new(&packet, third).name(), Err(Malformed));
    }
}
