//! The edns-tcp-keepalive option (RFC 7828): how long a connection may be silent, said to clients that ask.

use crate::cursor::Cursor;
use crate::header::rtype;
use crate::query::{OPT, Query};
use crate::reply::Reply;

/// The option's code.
const KEEPALIVE: u16 = 11;

/// Whether the sender of `query`, which stands in `packet`, asks how long its connection may be silent.
pub fn asks_keepalive(packet: &[u8], query: &Query) -> bool {
    query.edns.is_some() && find(packet, query).unwrap_or(false)
}

fn find(packet: &[u8], query: &Query) -> Option<bool> {
    let mut cursor = Cursor::new(packet, query.question_end);
    // One record may stand before the OPT (IXFR's SOA), and one of another kind (TSIG).
    for _ in 0..4 {
        cursor.skip_name().ok()?;
        let kind = cursor.u16().ok()?;
        cursor.take(6).ok()?;
        let length = cursor.u16().ok()?;
        let data = cursor.take(usize::from(length)).ok()?;
        if kind == rtype::OPT {
            return has_option(data);
        }
    }
    None
}

fn has_option(data: &[u8]) -> Option<bool> {
    let mut options = Cursor::new(data, 0);
    while options.at() < data.len() {
        let (code, length) = (options.u16().ok()?, options.u16().ok()?);
        options.take(usize::from(length)).ok()?;
        if code == KEEPALIVE {
            return Some(true);
        }
    }
    Some(false)
}

/// Adds the option to a reply that ends with an OPT record; any other is left as it is. `tenths`: how long the
/// connection may be silent, in tenths of a second; 0 asks the client to close it.
pub fn add_keepalive(reply: &mut Vec<u8>, tenths: u16) {
    let Ok(parsed) = Reply::parse(reply) else { return };
    let Some((_, place)) = parsed.edns.filter(|(_, place)| place.end == reply.len()) else { return };
    let length_at = place.start + OPT - 2;
    let Some(length) = reply.get(length_at..length_at + 2).and_then(|bytes| bytes.first_chunk::<2>()) else {
        return;
    };
    let Some(length) = u16::from_be_bytes(*length).checked_add(6) else { return };
    if let Some(place) = reply.get_mut(length_at..length_at + 2) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    reply.extend_from_slice(&KEEPALIVE.to_be_bytes());
    reply.extend_from_slice(&[0, 2]);
    reply.extend_from_slice(&tenths.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Admission, OwnedAnswer, Rcode};

    fn query(options: &[u8]) -> Vec<u8> {
        let mut packet =
            vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0, 1, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0];
        packet.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(options);
        packet
    }

    fn admit(packet: &[u8]) -> Query {
        let Admission::Accept(query) = Query::admit(packet) else { panic!("a good query") };
        query
    }

    #[test]
    fn finds_the_option_among_others_and_not_where_it_is_not() {
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        for (options, asked) in [
            (vec![], false),
            (vec![0, 11, 0, 0], true),
            (cookie.to_vec(), false),
            ([cookie.as_slice(), &[0, 11, 0, 0]].concat(), true),
            // Its code inside another one's data; and an option that is cut.
            (vec![0, 12, 0, 4, 0, 11, 0, 0], false),
            (vec![0, 11, 0, 9], false),
        ] {
            let packet = query(&options);
            assert_eq!(asks_keepalive(&packet, &admit(&packet)), asked, "{options:?}");
        }
        let plain = &query(&[])[..19];
        let plain = [&plain[..11], &[0], &plain[12..]].concat();
        assert!(!asks_keepalive(&plain, &admit(&plain)));
    }

    #[test]
    fn a_reply_says_the_time_within_its_opt_record() {
        let packet = query(&[0, 11, 0, 0]);
        let mut reply = packet.clone();
        reply.resize(512, 0);
        let answer = OwnedAnswer::empty(Rcode::NXDOMAIN);
        let length = answer.as_answer().write(&mut reply, &admit(&packet), None, 512).unwrap();
        reply.truncate(length);
        add_keepalive(&mut reply, 100);
        let parsed = Reply::parse(&reply).unwrap();
        assert_eq!((parsed.rcode(), parsed.end), (Rcode::NXDOMAIN, reply.len()));
        assert_eq!(reply[reply.len() - 8..], [0, 6, 0, 11, 0, 2, 0, 100]);
    }

    #[test]
    fn a_reply_without_an_opt_record_stays_as_it_is() {
        let mut reply = vec![0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let before = reply.clone();
        add_keepalive(&mut reply, 100);
        assert_eq!(reply, before);
    }
}
