//! Records from the text of a zone file's line, for `template`: `OWNER [TTL] [CLASS] TYPE DATA`.
//!
//! The types that Corefiles use are read here; any other in the form of RFC 3597, `\# LENGTH HEXADECIMAL`.

use std::net::{Ipv4Addr, Ipv6Addr};

use nodestub_corefile::{class_number, type_number};
use nodestub_wire::{OwnedRecord, Section, wire_name};

/// TTL of a line that says none, in seconds (CoreDNS's library).
const DEFAULT_TTL: u32 = 3600;

/// A word of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    bytes: Vec<u8>,
    quoted: bool,
}

/// Reads a line; `None`: it is no record.
pub fn read_record(line: &str, section: Section) -> Option<OwnedRecord> {
    let words = words(line)?;
    let (owner, mut rest) = words.split_first()?;
    let (mut ttl, mut class, mut rtype) = (None, None, None);
    while rtype.is_none() {
        let (word, after) = rest.split_first()?;
        rest = after;
        let text = std::str::from_utf8(&word.bytes).ok()?.to_uppercase();
        if ttl.is_none()
            && let Some(seconds) = read_ttl(&text)
        {
            ttl = Some(seconds);
        } else if let Some(number) = class_number(&text).filter(|_| class.is_none() && text != "ANY") {
            class = Some(number);
        } else {
            rtype = Some(type_number(&text).or_else(|| text.strip_prefix("TYPE")?.parse().ok())?);
        }
    }
    let rtype = rtype?;
    let data = if rest.first().is_some_and(|word| word.bytes == b"\\#") {
        unknown(rest)?
    } else {
        data(rtype, rest)?
    };
    Some(OwnedRecord {
        section,
        owner: name(owner)?,
        rtype,
        class: class.unwrap_or(1),
        ttl: ttl.unwrap_or(DEFAULT_TTL),
        data,
    })
}

/// Words, with quotes and escapes done where they are quoted; a comment ends the line.
fn words(line: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let bytes = line.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' => at += 1,
            b';' => break,
            b'"' => {
                let mut value = Vec::new();
                at += 1;
                loop {
                    match *bytes.get(at)? {
                        b'"' => break,
                        b'\\' => {
                            let (byte, length) = escape(bytes.get(at + 1..)?)?;
                            value.push(byte);
                            at += 1 + length;
                        }
                        byte => {
                            value.push(byte);
                            at += 1;
                        }
                    }
                }
                at += 1;
                words.push(Word { bytes: value, quoted: true });
            }
            _ => {
                let start = at;
                while let Some(&byte) = bytes.get(at).filter(|byte| !b" \t\r\n\";()".contains(byte)) {
                    at += if byte == b'\\' { 2 } else { 1 };
                }
                words.push(Word { bytes: bytes.get(start..at)?.to_vec(), quoted: false });
            }
        }
    }
    Some(words)
}

/// What stands behind a backslash: a byte, and how many characters it took.
fn escape(bytes: &[u8]) -> Option<(u8, usize)> {
    let first = *bytes.first()?;
    if !first.is_ascii_digit() {
        return Some((first, 1));
    }
    let digits = std::str::from_utf8(bytes.get(..3)?).ok()?;
    Some((digits.parse().ok()?, 3))
}

/// Seconds, or `1h30m` as in zone files.
fn read_ttl(text: &str) -> Option<u32> {
    let (mut total, mut number) = (0_u32, None::<u32>);
    for character in text.chars() {
        if let Some(digit) = character.to_digit(10) {
            number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
            continue;
        }
        let unit = match character {
            'S' => 1,
            'M' => 60,
            'H' => 3600,
            'D' => 86_400,
            'W' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    match (number, total) {
        (Some(number), total) => total.checked_add(number),
        (None, 0) => None,
        (None, total) => Some(total),
    }
}

fn name(word: &Word) -> Option<Vec<u8>> {
    wire_name(std::str::from_utf8(&word.bytes).ok()?).ok()
}

fn text(word: &Word) -> Option<&str> {
    std::str::from_utf8(&word.bytes).ok()
}

fn number<T: std::str::FromStr>(word: &Word) -> Option<T> {
    text(word)?.parse().ok()
}

/// A string with its length in front; what is not quoted may have escapes.
fn string(word: &Word) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    if word.quoted {
        value.clone_from(&word.bytes);
    } else {
        let mut at = 0;
        while let Some(&byte) = word.bytes.get(at) {
            if byte == b'\\' {
                let (byte, length) = escape(word.bytes.get(at + 1..)?)?;
                value.push(byte);
                at += 1 + length;
            } else {
                value.push(byte);
                at += 1;
            }
        }
    }
    let length = u8::try_from(value.len()).ok()?;
    value.insert(0, length);
    Some(value)
}

/// Strings of TXT: those that are too long are cut into several.
fn strings(words: &[Word]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    for word in words {
        let whole = Word { bytes: word.bytes.clone(), quoted: word.quoted };
        if whole.bytes.len() <= 255 {
            data.extend(string(&whole)?);
            continue;
        }
        for part in whole.bytes.chunks(255) {
            data.extend(string(&Word { bytes: part.to_vec(), quoted: true })?);
        }
    }
    (!data.is_empty()).then_some(data)
}

fn hexadecimal(words: &[Word]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = words.iter().flat_map(|word| word.bytes.iter().copied()).collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair =
                std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2 && !pair.starts_with('+'))?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

/// `\# LENGTH HEXADECIMAL` (RFC 3597, 5).
fn unknown(words: &[Word]) -> Option<Vec<u8>> {
    let [_, length, rest @ ..] = words else { return None };
    let data = hexadecimal(rest)?;
    (data.len() == number::<usize>(length)?).then_some(data)
}

fn data(rtype: u16, words: &[Word]) -> Option<Vec<u8>> {
    Some(match (rtype, words) {
        (1, [address]) => number::<Ipv4Addr>(address)?.octets().to_vec(),
        (28, [address]) => number::<Ipv6Addr>(address)?.octets().to_vec(),
        // NS, CNAME, PTR, DNAME
        (2 | 5 | 12 | 39, [target]) => name(target)?,
        // MX, AFSDB, KX
        (15 | 18 | 36, [preference, target]) => {
            [&number::<u16>(preference)?.to_be_bytes()[..], &name(target)?].concat()
        }
        (33, [priority, weight, port, target]) => {
            let mut data = Vec::new();
            for word in [priority, weight, port] {
                data.extend(number::<u16>(word)?.to_be_bytes());
            }
            [data, name(target)?].concat()
        }
        // SOA
        (6, [server, mailbox, numbers @ ..]) if numbers.len() == 5 => {
            let mut data = [name(server)?, name(mailbox)?].concat();
            for (index, word) in numbers.iter().enumerate() {
                let value =
                    if index == 0 { number::<u32>(word)? } else { read_ttl(&text(word)?.to_uppercase())? };
                data.extend(value.to_be_bytes());
            }
            data
        }
        // TXT, SPF
        (16 | 99, strings_of) if !strings_of.is_empty() => strings(strings_of)?,
        // HINFO
        (13, [cpu, system]) => [string(cpu)?, string(system)?].concat(),
        // RP
        (17, [mailbox, other]) => [name(mailbox)?, name(other)?].concat(),
        (35, [order, preference, flags, service, expression, target]) => {
            let mut data = Vec::new();
            data.extend(number::<u16>(order)?.to_be_bytes());
            data.extend(number::<u16>(preference)?.to_be_bytes());
            for word in [flags, service, expression] {
                data.extend(string(word)?);
            }
            [data, name(target)?].concat()
        }
        // CAA
        (257, [flag, tag, value]) => [vec![number::<u8>(flag)?], string(tag)?, value.bytes.clone()].concat(),
        // DS, TLSA, SMIMEA
        (43 | 52 | 53, [first, second, third, rest @ ..]) if !rest.is_empty() => {
            let mut data = Vec::new();
            if rtype == 43 {
                data.extend(number::<u16>(first)?.to_be_bytes());
            } else {
                data.push(number::<u8>(first)?);
            }
            data.extend([number::<u8>(second)?, number::<u8>(third)?]);
            [data, hexadecimal(rest)?].concat()
        }
        // SSHFP
        (44, [algorithm, kind, rest @ ..]) if !rest.is_empty() => {
            [vec![number::<u8>(algorithm)?, number::<u8>(kind)?], hexadecimal(rest)?].concat()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_templates_write() {
        for (line, owner, ttl, rtype, data) in [
            ("a.test. 60 IN A 192.0.2.1", "a.test.", 60, 1, vec![192, 0, 2, 1]),
            ("a.test IN 60 A 192.0.2.1", "a.test.", 60, 1, vec![192, 0, 2, 1]),
            ("A.test. AAAA ::1", "A.test.", 3600, 28, [vec![0; 15], vec![1]].concat()),
            ("a. 1h30m CNAME b.", "a.", 5400, 5, b"\x01b\0".to_vec()),
            ("a. 5 IN MX 10 b.", "a.", 5, 15, b"\0\x0a\x01b\0".to_vec()),
            ("a. 5 IN SRV 0 1 80 b.", "a.", 5, 33, b"\0\0\0\x01\0\x50\x01b\0".to_vec()),
            ("a. 5 IN TXT \"x y\" z \"q\\\"\\065\"", "a.", 5, 16, b"\x03x y\x01z\x03q\"A".to_vec()),
            ("a. 5 IN TYPE65280 \\# 2 abcd", "a.", 5, 65_280, vec![0xab, 0xcd]),
            ("a. 5 IN CAA 0 issue \"ca.test\"", "a.", 5, 257, b"\0\x05issueca.test".to_vec()),
            ("a. 5 IN HINFO \"x\" y", "a.", 5, 13, b"\x01x\x01y".to_vec()),
        ] {
            let record = read_record(line, Section::Answer).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(record.owner, wire_name(owner).unwrap(), "{line}");
            assert_eq!((record.ttl, record.rtype, record.data), (ttl, rtype, data), "{line}");
        }
        let soa = read_record("a. 60 IN SOA ns. me. 1 60 60 60 60", Section::Authority).unwrap();
        assert_eq!((soa.rtype, soa.data.len()), (6, 4 + 4 + 20));
        for line in [
            "",
            "a.",
            "a. 60 IN",
            "a. 60 IN A",
            "a. 60 IN A 1.2.3",
            "a. IN XYZ 1",
            "a. TXT \"x",
            "a..b A 1.2.3.4",
        ] {
            assert_eq!(read_record(line, Section::Answer), None, "{line}");
        }
    }
}
