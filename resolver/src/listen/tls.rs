//! Clients by TLS (RFC 7858): handshakes, and what is done when a connection ends. Between the two it is a stream like
//! any other (`stream`).
//!
//! A connection has its place among all of TCP before its handshake begins, so that the bounds of `clients` hold for
//! handshakes as well; a handshake may take as long as a first query, and less as places become few. It cannot move to
//! another process, which would need the keys of its session: who hands over serves it to its end, and on stopping takes
//! leave of it between two queries (close_notify; RFC 7766, 6.2.4: the client connects again).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nodestub_corefile::config::Scheme;
use rustls::HandshakeKind;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::clients::ConnectionPlace;
use super::stream::{self, FIRST_QUERY, Peer};
use super::{Held, Shared};
use crate::metrics::Counter;

/// How long taking leave may take: a client that does not read is left without.
const LEAVE: Duration = Duration::from_secs(1);

/// What became of handshakes.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// Of new sessions.
    pub full: Counter,
    /// Of sessions that were taken up again.
    pub resumed: Counter,
    /// That failed: no TLS, no version or certificate that both would take, or the client went.
    pub failed: Counter,
    /// That took too long.
    pub timed_out: Counter,
    /// Under way, now.
    pub under_way: AtomicUsize,
    /// Connections that are through, now.
    pub connections: AtomicUsize,
}

/// Serves a connection until it ends, its handshake included.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    client: SocketAddr,
    address: SocketAddr,
    place: ConnectionPlace,
) {
    let _open = Held::new(&shared.open_connections);
    let _place = place;
    let Some(stream) = shake_hands(&shared, stream, address).await else { return };
    let _through = Held::new(&shared.handshakes.connections);
    let (reader, writer) = tokio::io::split(stream);
    let peer = Peer { client, address, scheme: Scheme::Tls, has_asked: false };
    let leave = async {
        shared.ending.cancelled().await;
        true
    };
    let rest = stream::serve(&shared, peer, (reader, Vec::new()), writer, leave).await;
    if let Some(writer) = rest.writer {
        // Whether the client hears it is its own affair.
        drop(timeout(LEAVE, rest.reader.unsplit(writer).shutdown()).await);
    }
}

/// `None`: nothing came of it, which is counted.
async fn shake_hands(
    shared: &Shared,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    let tables = shared.tables.load_full();
    let config = tables.listeners.get(&address)?.certificates.as_ref()?.config();
    drop(tables);
    let handshakes = &shared.handshakes;
    let _under_way = Held::new(&handshakes.under_way);
    let usual = stream::timeouts(shared, address).read.unwrap_or(FIRST_QUERY);
    let mut pressure = shared.clients.pressure();
    let began = Instant::now();
    let mut handshake = std::pin::pin!(TlsAcceptor::from(config).accept(stream));
    loop {
        let patience = pressure.borrow_and_update().patience(usual);
        let shaken = tokio::select! {
            biased;
            () = shared.ending.cancelled() => return None,
            shaken = timeout_at(began + patience, &mut handshake) => shaken,
            // There is less patience, or more; the clock runs on.
            changed = pressure.changed() => if changed.is_ok() { continue } else { return None },
        };
        match shaken {
            Ok(Ok(stream)) => {
                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                (if resumed { &handshakes.resumed } else { &handshakes.full }).add(1);
                return Some(stream);
            }
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "a handshake of TLS failed");
                handshakes.failed.add(1);
            }
            Err(_) => handshakes.timed_out.add(1),
        }
        return None;
    }
}
