//! The upstream of all servers: answers at once, from a rule, so cheaply that it is never what is measured.
//!
//! ```text
//!   nx….  NXDOMAIN with a SOA           a name that does not exist
//!   once… 192.0.2.1, one second         a name that is asked once
//!   …     192.0.2.1, one hour
//! ```
//!
//! One thread for UDP, one for each TCP connection; whatever has come together on a connection leaves in one write.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::batch::Datagrams;

/// TTL of names that are to be kept, in seconds.
const LONG: u32 = 3600;

/// The least that anybody takes for a TTL, so that a name has been forgotten when its turn comes again.
const SHORT: u32 = 1;

/// TCP connections at a time; CoreDNS opens one for each query under way.
const MAX_CONNECTIONS: usize = 4096;

/// Serves until the process is killed.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn serve(address: SocketAddr) -> Result<(), String> {
    let listener = TcpListener::bind(address).map_err(|error| format!("cannot bind {address}: {error}"))?;
    let mut datagrams = Datagrams::bind(address)?;
    thread::spawn(move || {
        let mut open: Vec<thread::JoinHandle<()>> = Vec::new();
        for stream in listener.incoming().flatten() {
            open.retain(|connection| !connection.is_finished());
            if open.len() < MAX_CONNECTIONS {
                // The asker closes its connections; each ends with its stream.
                open.push(thread::spawn(move || {
                    drop(serve_connection(stream));
                }));
            }
        }
    });
    println!("answering on {address}");
    datagrams.serve(answer)
}

fn serve_connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 16];
    let mut filled = 0;
    let mut replies = Vec::new();
    loop {
        let read = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut taken = 0;
        replies.clear();
        while let Some(rest) = buffer.get(taken..filled)
            && let Some((length, rest)) = rest.split_first_chunk::<2>()
            && let Some(query) = rest.get(..usize::from(u16::from_be_bytes(*length)))
        {
            let mut reply = query.to_vec();
            answer(&mut reply);
            replies.extend_from_slice(&u16::try_from(reply.len()).unwrap_or(0).to_be_bytes());
            replies.extend_from_slice(&reply);
            taken += 2 + query.len();
        }
        stream.write_all(&replies)?;
        buffer.copy_within(taken..filled, 0);
        filled -= taken;
    }
}

/// Turns a query into its reply.
pub(crate) fn answer(message: &mut Vec<u8>) {
    let Some(end) = question_end(message) else { return message.clear() };
    let name = message.get(13..).unwrap_or_default();
    let (rcode, ttl) = match name {
        [b'n' | b'N', b'x' | b'X', ..] => (3, LONG),
        [b'o' | b'O', b'n' | b'N', b'c' | b'C', ..] => (0, SHORT),
        _ => (0, LONG),
    };
    let is_a = message.get(end - 4..end - 2) == Some(&[0, 1]);
    message.truncate(end);
    let (answers, authorities) = if rcode == 0 && is_a { (1, 0) } else { (0, 1) };
    // QR, AA, the client's RD; RA and the code. One question.
    let recursion_desired = message.get(2).copied().unwrap_or(0) & 1;
    let header = [0x84 | recursion_desired, 0x80 | rcode, 0, 1, 0, answers, 0, authorities, 0, 0];
    if let Some(place) = message.get_mut(2..12) {
        place.copy_from_slice(&header);
    }
    if answers == 1 {
        // The name of the question, A, IN.
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        message.extend_from_slice(&ttl.to_be_bytes());
        message.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
    } else {
        // The SOA of the zone that both sets of names stand in: its labels begin behind the first one of the question.
        let first = usize::from(message.get(12).copied().unwrap_or(0));
        let zone = u8::try_from(13 + first).unwrap_or(12);
        message.extend_from_slice(&[0xc0, zone, 0, 6, 0, 1]);
        message.extend_from_slice(&LONG.to_be_bytes());
        let mut data = vec![2, b'n', b's', 0xc0, zone, 1, b'h', 0xc0, zone];
        for number in [1, 7200, 1800, 86400, LONG] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        message.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        message.extend_from_slice(&data);
    }
}

/// Where the question ends, in a query of one plain question.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    while let length @ 1..=63 = *message.get(at)? {
        at += 1 + usize::from(length);
    }
    let end = at + 5;
    (message.get(at) == Some(&0) && message.len() >= end && message.get(4..6) == Some(&[0, 1])).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, 0, kind, 0, 1]);
        message
    }

    #[test]
    fn answers_by_the_first_letters_of_a_name() {
        let mut reply = query("name7.example.com", 1);
        answer(&mut reply);
        assert_eq!(reply[2..12], [0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(reply[reply.len() - 10..], [0, 0, 14, 16, 0, 4, 192, 0, 2, 1]);
        let mut once = query("once7.example.com", 1);
        answer(&mut once);
        assert_eq!(once[once.len() - 10..], [0, 0, 0, 1, 0, 4, 192, 0, 2, 1]);
        let mut denied = query("nx7.example.com", 1);
        answer(&mut denied);
        assert_eq!(denied[2..12], [0x85, 0x83, 0, 1, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn says_nothing_to_what_is_no_query() {
        for message in [&[0_u8; 3][..], &[0; 12], &[0xff; 40]] {
            let mut reply = message.to_vec();
            answer(&mut reply);
            assert!(reply.is_empty());
        }
    }
}
