//! Bounds of time and number, with short times: a server in this process, a client that does too little.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use common::client::{connect, read_response};
use nodestub_certs::{Lifetimes, Pair, Resolver, ServingNames, issue};
use nodestub_webhook::listen::{Limits, Port, bind, serve, tls};
use nodestub_webhook::metrics::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);
/// More than fits between two ends of a connection.
const LARGE_BYTES: usize = 32 << 20;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    _runtime: tokio::runtime::Runtime,
}

fn limits() -> Limits {
    Limits { connections: 100, handshake: LONG, head: LONG, age: LONG, ending: LONG }
}

fn start(limits: Limits, certificates: Option<Arc<Resolver>>) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let metrics = Arc::new(Metrics::new(Resolver::empty()));
    let port = Port {
        router: Router::new()
            .route("/", get(|| async { "here" }))
            .route("/large", get(|| async { vec![0_u8; LARGE_BYTES] })),
        tls: certificates.map(|certificates| tls(certificates).unwrap()),
        limits,
        metrics: Some(Arc::clone(&metrics)),
    };
    let listener = runtime.block_on(bind(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(serve(listener, port, CancellationToken::new(), TaskTracker::new()));
    Server { address, metrics, _runtime: runtime }
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Waits until the failure has been counted, which may come shortly after the connection's end.
    fn wait_for_failure(&self, cause: &str) {
        let line = format!("nodestub_webhook_connection_failures_total{{cause=\"{cause}\"}} 1");
        while !self.metrics.text().unwrap().lines().any(|counted| counted == line) {
            std::thread::yield_now();
        }
    }
}

/// Reads until the server closes; a reset is a close as well.
fn read_to_close(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        assert_eq!(error.kind(), ConnectionReset, "it was not closed");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn ends_a_handshake_that_does_not_come() {
    let server = start(Limits { handshake: SHORT, ..limits() }, Some(Resolver::empty()));
    assert_eq!(read_to_close(&mut server.connect()), "");
    server.wait_for_failure("handshake_timeout");
}

#[test]
fn ends_a_handshake_that_is_none() {
    let server = start(limits(), Some(Resolver::empty()));
    let mut stream = server.connect();
    stream.write_all(REQUEST).unwrap();
    assert!(!read_to_close(&mut stream).contains("here"));
    server.wait_for_failure("handshake");
}

#[test]
fn ends_a_connection_without_a_request() {
    let server = start(Limits { head: SHORT, ..limits() }, None);
    assert!(!read_to_close(&mut server.connect()).contains("here"));
}

#[test]
fn ends_a_connection_whose_request_does_not_get_on() {
    let server = start(Limits { head: SHORT, ..limits() }, None);
    let mut stream = server.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: ").unwrap();
    assert!(!read_to_close(&mut stream).contains("here"));
}

#[test]
fn ends_an_old_connection_after_what_it_has_in_hand() {
    let server = start(Limits { age: SHORT, ..limits() }, None);
    let mut stream = server.connect();
    stream.write_all(REQUEST).unwrap();
    assert!(read_to_close(&mut stream).ends_with("here"));
}

#[test]
fn lets_further_connections_wait_for_a_place() {
    let server = start(Limits { connections: 1, ..limits() }, None);
    let mut first = server.connect();
    ask(&mut first);

    let mut second = server.connect();
    second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    // Far more than the second would have needed, were there a place for it.
    for _ in 0..100 {
        ask(&mut first);
    }
    second.set_nonblocking(true).unwrap();
    let waiting = second.read(&mut [0]).unwrap_err();
    assert_eq!(waiting.kind(), std::io::ErrorKind::WouldBlock);
    second.set_nonblocking(false).unwrap();

    drop(first);
    assert!(read_to_close(&mut second).ends_with("here"));
}

#[test]
fn ends_an_http2_connection_without_a_request() {
    let (resolver, authority) = certificates();
    let server = start(Limits { head: SHORT, ..limits() }, Some(resolver));
    let mut tls = connect(server.address, &authority, &[b"h2"]).unwrap();
    let mut text = Vec::new();
    match tls.read_to_end(&mut text) {
        Ok(_) => {}
        Err(error) => assert!([UnexpectedEof, ConnectionReset].contains(&error.kind()), "{error}"),
    }
    server.wait_for_failure("no_request");
}

/// A certificate that is served, and who vouches for it.
fn certificates() -> (Arc<Resolver>, Vec<u8>) {
    let resolver = Resolver::empty();
    let names = ServingNames {
        service: "nodestub-webhook".to_owned(),
        namespace: "nodestub-system".to_owned(),
        cluster_domain: None,
        addresses: Vec::new(),
        extra: Vec::new(),
    };
    let material = issue(&names, Lifetimes::for_leaf(LONG), SystemTime::now()).unwrap();
    resolver.swap(Arc::new(Pair::parse(&material, SystemTime::now()).unwrap()));
    (resolver, material.authority)
}

#[test]
fn ends_an_old_connection_whose_client_does_not_take_its_answer() {
    let server = start(Limits { age: SHORT, ending: SHORT, ..limits() }, None);
    let mut stream = server.connect();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    server.wait_for_failure("overdue");
    assert!(read_to_close(&mut stream).len() < LARGE_BYTES);
}

#[test]
fn ends_an_old_http2_connection_whose_client_does_not_take_its_answer() {
    let (resolver, authority) = certificates();
    let server = start(Limits { age: SHORT, ending: SHORT, ..limits() }, Some(resolver));
    let mut tls = connect(server.address, &authority, &[b"h2"]).unwrap();
    // The preface, SETTINGS, and `GET /large`, for which there is a window of 64 KiB (RFC 9113, 6.9.2) that is not widened.
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    tls.write_all(b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x87\x04\x06/large\0").unwrap();
    server.wait_for_failure("overdue");
}

/// One exchange on a connection that stays open.
fn ask(stream: &mut TcpStream) {
    stream.write_all(REQUEST).unwrap();
    assert_eq!(read_response(stream).text(), "here");
}

#[test]
fn resets_no_connection_whose_client_still_sends_when_it_ends() {
    let server = start(Limits { age: SHORT, ..limits() }, None);
    let mut stream = server.connect();
    stream.write_all(REQUEST).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("here"), "{text}");
    // The first of these would be answered by a reset, and the others not taken at all.
    for _ in 0..3 {
        stream.write_all(b"GET").unwrap();
        std::thread::sleep(SHORT);
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn lets_go_of_a_client_that_goes_on_sending_when_its_connection_has_ended() {
    let server = start(Limits { age: SHORT, connections: 1, ..limits() }, None);
    let mut endless = server.connect();
    endless.write_all(REQUEST).unwrap();
    let mut text = String::new();
    endless.read_to_string(&mut text).unwrap();
    while endless.write_all(&[b'x'; 4096]).is_ok() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The only place is free again.
    let mut next = server.connect();
    next.write_all(REQUEST).unwrap();
    assert!(read_to_close(&mut next).ends_with("here"));
}
