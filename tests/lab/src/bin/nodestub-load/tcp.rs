//! Queries by TCP: on a connection each, and on connections that are kept.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::tally::{Tally, Who};
use crate::{PATIENCE, Plan, message};

/// Between two queries on a connection that is kept.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection for each query.
pub(crate) fn new_each_time(plan: &Plan, pause: Duration) -> Tally {
    let mut tally = Tally::new(plan);
    let mut next = Instant::now();
    let mut number = 0_u32;
    while !plan.is_over() {
        let asked_at = Instant::now();
        tally.sent(asked_at);
        let answer = connect(plan).and_then(|mut stream| {
            tally.opened += 1;
            ask(plan, &mut stream, number)
        });
        match answer {
            Ok(address) => {
                tally.answered(asked_at, address);
            }
            Err(error) => {
                tally.wrong_answer += u64::from(error.kind() == io::ErrorKind::InvalidData);
                tally.lost(asked_at);
            }
        }
        number = number.wrapping_add(1);
        // What is late is not made up for.
        next = (next + pause).max(Instant::now() - pause);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    tally
}

/// A connection for many queries, one after the other; then another one.
pub(crate) fn kept(plan: &Plan, client: u32) -> Tally {
    let mut tally = Tally::new(plan);
    let mut number = client;
    // So that not all are opened and closed at once.
    let mut left = 1 + client.wrapping_mul(37) % plan.per_connection;
    while !plan.is_over() {
        let opening = Instant::now();
        let Ok(mut stream) = connect(plan) else {
            tally.sent(opening);
            tally.lost(opening);
            std::thread::sleep(PAUSE);
            continue;
        };
        tally.opened += 1;
        let mut who: Option<Who> = None;
        while left > 0 && !plan.is_over() {
            if is_closed(&stream) {
                // By the other end, and before anything was asked: no question is lost, and a new connection is opened.
                tally.ended_early(who);
                break;
            }
            let asked_at = Instant::now();
            tally.sent(asked_at);
            match ask(plan, &mut stream, number) {
                Ok(address) => {
                    let now = tally.answered(asked_at, address);
                    tally.changed_hands += u64::from(who.is_some_and(|before| before != now));
                    who = Some(now);
                }
                Err(error) => {
                    tally.wrong_answer += u64::from(error.kind() == io::ErrorKind::InvalidData);
                    tally.lost(asked_at);
                    tally.ended_early(who);
                    break;
                }
            }
            number = number.wrapping_add(1);
            left -= 1;
            std::thread::sleep(PAUSE);
        }
        left = plan.per_connection;
    }
    tally
}

/// Nothing is expected: what can be read is the end, or an error.
fn is_closed(stream: &TcpStream) -> bool {
    let mut only = [PollFd::new(stream, PollFlags::IN)];
    poll(&mut only, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

fn connect(plan: &Plan) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&plan.server, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(plan: &Plan, stream: &mut TcpStream, number: u32) -> io::Result<std::net::IpAddr> {
    let id = message::some_id(number);
    let query = message::query(id, number % plan.names, &plan.zone, plan.server.is_ipv4());
    let mut framed = u16::try_from(query.len()).expect("a query is short").to_be_bytes().to_vec();
    framed.extend(&query);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    message::answer(&query, &answer).map_err(|_| io::ErrorKind::InvalidData.into())
}
