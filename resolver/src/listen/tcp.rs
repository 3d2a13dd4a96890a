//! Clients by TCP: connections are accepted, served (`stream`), and move to another process.
//!
//! When a handover begins, a connection is read no further, what was asked on it is answered, and then it moves as it
//! stands: socket, and bytes that have been read and not been taken up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodestub_corefile::config::Scheme;
use tokio::net::{TcpListener, TcpStream};

use super::clients::ConnectionPlace;
use super::stream::{self, Peer};
use super::{Held, Movers, Shared, tls};

/// Pause after accepting failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts for ever; the caller ends it by dropping.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, address: SocketAddr, scheme: Scheme) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(%address, %cause, "cannot accept a TCP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = shared.clients.connect(client.ip()) else { continue };
        // Not having it costs latency, nothing else.
        drop(stream.set_nodelay(true));
        match scheme {
            Scheme::Dns => {
                let idle = Idle { stream, client, address, has_asked: false, unread: Vec::new(), place };
                tokio::spawn(serve(Arc::clone(&shared), idle));
            }
            Scheme::Tls => {
                tokio::spawn(tls::serve(Arc::clone(&shared), stream, client, address, place));
            }
        }
    }
}

/// A connection on which nothing is under way.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) stream: TcpStream,
    pub(super) client: SocketAddr,
    pub(super) address: SocketAddr,
    pub(super) has_asked: bool,
    /// Read, and not taken up: whole queries, and a part of one.
    pub(super) unread: Vec<u8>,
    /// Its place among all connections.
    pub(super) place: ConnectionPlace,
}

/// Serves a connection until it ends or has moved to another process.
pub(super) async fn serve(shared: Arc<Shared>, mut idle: Idle) {
    let _open = Held::new(&shared.open_connections);
    let mut movers = shared.movers.subscribe();
    loop {
        let Some(rest) = serve_until_moved(&shared, &mut movers, idle).await else { return };
        idle = rest;
        let Some(mover) = movers.borrow_and_update().clone() else { continue };
        match mover.send(idle).await {
            Ok(()) => return,
            Err(refused) => idle = refused.0,
        }
        // That mover has given up; served again when the order is lifted, and not before.
        if movers.wait_for(Option::is_none).await.is_err() {
            return;
        }
    }
}

/// Serves until the connection ends (`None`), or connections are to move and nothing is under way on this one.
async fn serve_until_moved(shared: &Arc<Shared>, movers: &mut Movers, idle: Idle) -> Option<Idle> {
    let Idle { stream, client, address, has_asked, unread, place } = idle;
    let (read_half, write_half) = stream.into_split();
    let peer = Peer { client, address, scheme: Scheme::Dns, has_asked };
    let leave = async { movers.wait_for(Option::is_some).await.is_ok() };
    let rest = stream::serve(shared, peer, (read_half, unread), write_half, leave).await;
    if !rest.leaves {
        return None;
    }
    let stream = rest.reader.reunite(rest.writer?).ok()?;
    Some(Idle { stream, client, address, has_asked: rest.has_asked, unread: rest.unread, place })
}
