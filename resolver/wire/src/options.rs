//! Options of a reply's OPT record that the transport adds, whoever made the reply: how long a connection may be silent
//! (RFC 7828), and padding (RFC 7830).

use crate::query::{OPT, Query};
use crate::reply::Reply;

/// edns-tcp-keepalive.
const KEEPALIVE: u16 = 11;

/// Padding.
const PADDING: u16 = 12;

/// Code and length of an option, in bytes.
const HEAD: usize = 4;

/// Replies are padded to a multiple of so many bytes (RFC 8467, 4.1).
const PADDED_BLOCK: usize = 468;

/// Whether the sender of `query`, which stands in `packet`, asks how long its connection may be silent.
pub fn asks_keepalive(packet: &[u8], query: &Query) -> bool {
    query.options(packet).any(|(code, _)| code == KEEPALIVE)
}

/// Whether the sender of `query`, which stands in `packet`, has padded it: then its reply is to be padded as well (RFC
/// 7830, 4), where nobody can read it on the way.
pub fn asks_padding(packet: &[u8], query: &Query) -> bool {
    query.options(packet).any(|(code, _)| code == PADDING)
}

/// Adds the option to a reply that ends with an OPT record; any other is left as it is. `tenths`: how long the
/// connection may be silent, in tenths of a second; 0 asks the client to close it.
pub fn add_keepalive(reply: &mut Vec<u8>, tenths: u16) {
    add(reply, KEEPALIVE, &tenths.to_be_bytes());
}

/// Pads a reply that ends with an OPT record to the next multiple of 468 bytes; the last option of all. One that would
/// become too long for a DNS message is left as it is.
pub fn add_padding(reply: &mut Vec<u8>) {
    let length = (reply.len() + HEAD).next_multiple_of(PADDED_BLOCK);
    if length <= usize::from(u16::MAX) {
        let padding = vec![0; length - reply.len() - HEAD];
        add(reply, PADDING, &padding);
    }
}

fn add(reply: &mut Vec<u8>, code: u16, data: &[u8]) {
    let Ok(parsed) = Reply::parse(reply) else { return };
    let Some((_, place)) = parsed.edns.filter(|(_, place)| place.end == reply.len()) else { return };
    let length_at = place.start + OPT - 2;
    let Some(length) = reply.get(length_at..length_at + 2).and_then(|bytes| bytes.first_chunk::<2>()) else {
        return;
    };
    let (Ok(data_length), Ok(added)) = (u16::try_from(data.len()), u16::try_from(HEAD + data.len())) else {
        return;
    };
    let Some(length) = u16::from_be_bytes(*length).checked_add(added) else { return };
    if let Some(place) = reply.get_mut(length_at..length_at + 2) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    reply.extend_from_slice(&code.to_be_bytes());
    reply.extend_from_slice(&data_length.to_be_bytes());
    reply.extend_from_slice(data);
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

    fn nxdomain(packet: &[u8]) -> Vec<u8> {
        let mut reply = packet.to_vec();
        reply.resize(512, 0);
        let answer = OwnedAnswer::empty(Rcode::NXDOMAIN);
        let length = answer.as_answer().write(&mut reply, &admit(packet), None, 512).unwrap();
        reply.truncate(length);
        reply
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
        let mut reply = nxdomain(&packet);
        add_keepalive(&mut reply, 100);
        let parsed = Reply::parse(&reply).unwrap();
        assert_eq!((parsed.rcode(), parsed.end), (Rcode::NXDOMAIN, reply.len()));
        assert_eq!(reply[reply.len() - 8..], [0, 6, 0, 11, 0, 2, 0, 100]);
    }

    #[test]
    fn a_reply_is_padded_to_whole_blocks_and_its_keepalive_stays() {
        let packet = query(&[0, 12, 0, 2, 0, 0]);
        assert!(asks_padding(&packet, &admit(&packet)) && !asks_keepalive(&packet, &admit(&packet)));
        let mut reply = nxdomain(&packet);
        add_keepalive(&mut reply, 100);
        add_padding(&mut reply);
        assert_eq!(reply.len(), 468);
        let parsed = Reply::parse(&reply).unwrap();
        assert_eq!((parsed.rcode(), parsed.end), (Rcode::NXDOMAIN, reply.len()));
        let (_, place) = parsed.edns.unwrap();
        assert_eq!(reply[place.start + OPT..][..6], [0, 11, 0, 2, 0, 100]);
        assert_eq!(reply[place.start + OPT + 6..][..2], [0, 12]);
        assert!(reply[place.start + OPT + 10..].iter().all(|byte| *byte == 0));
        // A whole block and more.
        add_padding(&mut reply);
        assert_eq!(reply.len(), 2 * 468);
    }

    #[test]
    fn a_reply_without_an_opt_record_stays_as_it_is() {
        let mut reply = vec![0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let before = reply.clone();
        add_keepalive(&mut reply, 100);
        add_padding(&mut reply);
        assert_eq!(reply, before);
    }
}
