//! Any bytes on the admission port, inside TLS: what a client may send after a good handshake, in place of a review or in
//! the midst of one. Nothing falls over, whoever asks well meanwhile and afterwards is answered, and no connection stays.
//!
//! `http1` and `http2` make the bytes; what is done to the TLS handshake itself is in `limits.rs`, what stands in a body
//! of good length in `properties.rs` and `binary.rs`. 600 clients, or 6,000 with `NODESTUB_FULL=1`; new ones each time.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod http1;
mod http2;

use std::cell::{Cell, RefCell};
use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof, WouldBlock};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::client::{Tls, Webhook, connect, issue_certificates, read_response};
use common::{review, vectors};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

/// How long the server may take to end a connection whose client has said all: what it waits for has bounds below.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client waits for an answer to what deserves none.
const ANSWER: Duration = Duration::from_millis(10);
/// Clients that stay, silent, after what they have said; all of them at once.
const MOST_HELD: usize = 40;

/// What a client does.
#[derive(Debug, Clone)]
struct Client {
    /// What it says in the handshake that it speaks, which need not be what follows; empty: nothing.
    protocol: &'static [u8],
    bytes: Vec<u8>,
    /// Where the bytes are parted: each part is a record of its own.
    parted: Vec<Index>,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// It closes its half, and reads what still comes.
    Politely,
    /// It is gone.
    Abruptly,
    /// It neither says more nor closes.
    Never,
}

fn any_client(review: &[u8]) -> BoxedStrategy<Client> {
    let (http1, http2) = (&b"http/1.1"[..], &b"h2"[..]);
    let spoken = prop_oneof![
        8 => (Just(http1), http1::anything(review)),
        8 => (Just(http2), http2::anything(review)),
        // The other one's language, and none at all.
        1 => (Just(http2), http1::anything(review)),
        1 => (Just(http1), http2::anything(review)),
        1 => (Just(&b""[..]), prop_oneof![http1::anything(review), http2::anything(review)]),
    ];
    let end = prop_oneof![12 => Just(End::Politely), 6 => Just(End::Abruptly), 1 => Just(End::Never)];
    (spoken, prop::collection::vec(any::<Index>(), 0..4), end)
        .prop_map(|((protocol, bytes), parted, end)| Client { protocol, bytes, parted, end })
        .boxed()
}

/// The webhook's bound for a body, in bytes.
const MAX_BODY_BYTES: usize = 7 * 1024 * 1024;

/// What may stand for the length of a body that is so many bytes long.
fn any_length(length: usize) -> BoxedStrategy<String> {
    prop_oneof![
        (0..length * 2).prop_map(|length| length.to_string()),
        any::<i128>().prop_map(|length| length.to_string()),
    ]
    .boxed()
}

/// A few changes to bytes that were good: others in their place, others between, some taken out, some twice, broken off.
fn damaged(good: Vec<u8>) -> BoxedStrategy<Vec<u8>> {
    let change = (any::<Index>(), 0_usize..200, 0..5_u8, prop::collection::vec(any::<u8>(), 1..20));
    prop::collection::vec(change, 1..5)
        .prop_map(move |changes| {
            let mut bytes = good.clone();
            for (place, length, kind, others) in changes {
                let start = place.index(bytes.len() + 1);
                let end = (start + length).min(bytes.len());
                match kind {
                    0 => drop(bytes.splice(start..end.min(start + others.len()), others)),
                    1 => drop(bytes.splice(start..start, others)),
                    2 => drop(bytes.drain(start..end)),
                    3 => {
                        let again = bytes[start..end].to_vec();
                        drop(bytes.splice(start..start, again));
                    }
                    _ => bytes.truncate(start),
                }
            }
            bytes
        })
        .boxed()
}

impl Client {
    /// Says it all. The server may end the connection at any point of it.
    fn speak(&self, tls: &mut Tls) -> io::Result<()> {
        let mut ends: Vec<_> = self.parted.iter().map(|place| place.index(self.bytes.len() + 1)).collect();
        ends.push(self.bytes.len());
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            tls.write_all(&self.bytes[start..end])?;
            tls.flush()?;
            start = end;
        }
        Ok(())
    }
}

/// Waits a little for an answer, closes our half, and gives all that came; the end must come.
fn finish(mut tls: Tls) -> Vec<u8> {
    let mut said = Vec::new();
    // A request whose client has closed its half is not answered any more.
    tls.sock.set_read_timeout(Some(ANSWER)).unwrap();
    let answered = tls.read_to_end(&mut said);
    tls.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    if answered.is_err_and(|error| error.kind() == WouldBlock) {
        tls.conn.send_close_notify();
        let ended = tls
            .flush()
            .and_then(|()| tls.sock.shutdown(Shutdown::Write))
            .and_then(|()| tls.read_to_end(&mut said).map(drop));
        if let Err(error) = ended {
            assert!(is_end(&error), "the connection was not ended: {error}");
        }
    }
    said
}

fn is_end(error: &io::Error) -> bool {
    [UnexpectedEof, ConnectionReset, BrokenPipe, NotConnected].contains(&error.kind())
}

/// One exchange on a connection that stays open.
fn ask(tls: &mut Tls, body: &[u8]) {
    tls.write_all(&http1::request(body)).unwrap();
    let answer = read_response(tls);
    assert_eq!((answer.status, &answer.json()["response"]["allowed"]), (200, &json!(true)));
}

fn a_review() -> Vec<u8> {
    let vectors = vectors();
    let plain =
        vectors.iter().find(|vector| vector.name == "a plain pod in a namespace that opted in").unwrap();
    serde_json::to_vec(&review(plain)).unwrap()
}

/// A webhook, and who vouches for it.
fn start(home: &tempfile::TempDir) -> (Webhook, Vec<u8>) {
    issue_certificates(home.path());
    let flags = [
        "--cluster-dns=10.96.0.10",
        "--cluster-domain=cluster.local",
        "--host-search=none",
        "--namespace=shop:nodestub.io/inject=enabled",
    ];
    let webhook = Webhook::start(home.path(), &flags.map(str::to_owned));
    let trust = std::fs::read(home.path().join("ca.crt")).unwrap();
    (webhook, trust)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What is damaged in the other test is good.
#[test]
fn answers_the_good_requests_that_are_damaged_elsewhere() {
    let home = tempfile::tempdir().unwrap();
    let (webhook, trust) = start(&home);
    let body = a_review();
    for (protocol, bytes) in [
        (&b"http/1.1"[..], http1::request(&body)),
        (b"http/1.1", http1::chunked(&body)),
        (b"h2", http2::request(&body)),
    ] {
        let mut tls = connect(webhook.admission, &trust, &[protocol]).unwrap();
        tls.write_all(&bytes).unwrap();
        let (mut said, mut part) = (Vec::new(), [0; 4096]);
        while !contains(&said, br#""allowed":true"#) {
            let length = tls.read(&mut part).unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&said));
            said.extend(&part[..length]);
        }
    }
}

#[test]
fn answers_the_next_good_review_whatever_bytes_came_before() {
    let home = tempfile::tempdir().unwrap();
    let (webhook, trust) = start(&home);
    let body = a_review();
    let count = if std::env::var_os("NODESTUB_FULL").is_some() { 6_000 } else { 600 };
    let mut runner = TestRunner::new(Config {
        cases: count,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    });
    // Somebody asks well all the time, by one connection for each hundred: it ends by its age.
    let neighbour = RefCell::new((0_u32, connect(webhook.admission, &trust, &[b"http/1.1"]).unwrap()));
    let held = RefCell::new(Vec::new());
    let (answered, cut_off) = (Cell::new(0), Cell::new(0));
    runner
        .run(&any_client(&body), |client| {
            let offered: &[&[u8]] = if client.protocol.is_empty() { &[] } else { &[client.protocol] };
            let mut tls = connect(webhook.admission, &trust, offered).unwrap();
            tls.sock.set_write_timeout(Some(PATIENCE)).unwrap();
            match client.speak(&mut tls) {
                Ok(()) => {}
                Err(error) if is_end(&error) => cut_off.set(cut_off.get() + 1),
                Err(error) => panic!("it is neither read nor closed: {error}"),
            }
            match client.end {
                End::Politely => {
                    let said = finish(tls);
                    assert!(!contains(&said, br#""allowed":false"#), "a pod was refused");
                    answered.set(answered.get() + u32::from(contains(&said, br#""allowed":true"#)));
                }
                End::Abruptly => drop(tls),
                End::Never => {
                    let mut held = held.borrow_mut();
                    held.push(tls);
                    if held.len() > MOST_HELD {
                        held.remove(0);
                    }
                }
            }
            let (asked, neighbour) = &mut *neighbour.borrow_mut();
            *asked += 1;
            if *asked % 100 == 0 {
                *neighbour = connect(webhook.admission, &trust, &[b"http/1.1"]).unwrap();
            }
            ask(neighbour, &body);
            ask(&mut connect(webhook.admission, &trust, &[]).unwrap(), &body);
            Ok(())
        })
        .unwrap();

    drop((neighbour, held));
    let began = Instant::now();
    while webhook.count("nodestub_webhook_connections") > 0 {
        let open = webhook.count("nodestub_webhook_connections");
        assert!(began.elapsed() < PATIENCE, "{open} connections stay");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(webhook.count("nodestub_webhook_faults_total"), 0);
    let panics: Vec<_> = webhook.logged().into_iter().filter(|log| log["message"] == "panic").collect();
    assert!(panics.is_empty(), "{panics:?}");
    // The bytes came as far as they should: to the reading of HTTP, of bodies, and some to a decision.
    let failed = webhook.count("nodestub_webhook_connection_failures_total{cause=\"protocol\"}");
    let refused: u64 = ["body", "not_a_review", "too_large"]
        .map(|cause| webhook.count(&format!("nodestub_webhook_refusals_total{{cause=\"{cause}\"}}")))
        .iter()
        .sum();
    let (answered, cut_off) = (answered.get(), cut_off.get());
    println!(
        "{count} clients: {failed} connections failed, {refused} requests were refused, {answered} clients were answered, {cut_off} cut off"
    );
    assert!(failed > 50 && refused > 20 && answered > 0, "{failed}, {refused}, {answered}");
}
