//! What `health` finds out about itself: how long its own endpoint takes to answer, asked once a second from inside.
//! On a machine that has too much to do it shows there first (CoreDNS `plugin/health/overloaded.go`).
//!
//! A process that stands by asks nothing: the newcomer has the same sockets, and would be measured in its place.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::admin::Status;
use crate::metrics::{Counter, SlimDurations};

/// Time between two requests.
const EVERY: Duration = Duration::from_secs(1);

/// Longest wait for an answer (CoreDNS's).
const PATIENCE: Duration = Duration::from_secs(3);

/// An answer that takes longer is said: nothing on the same machine should.
const SLOW: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Default)]
pub struct SelfChecks {
    /// How long requests took, failed ones included.
    pub durations: SlimDurations,
    /// Requests without an answer.
    pub failures: Counter,
}

/// Asks for as long as the process lives, wherever the Corefile in force has `health`.
pub fn start(status: &Arc<Status>) {
    let status = Arc::clone(status);
    tokio::spawn(async move {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if status.handovers.is_standing_by() || status.stopping.load(Relaxed) {
                continue;
            }
            for address in addresses(&status) {
                check(&status.self_checks, address).await;
            }
        }
    });
}

/// Where `health` is served in the clear; at most one for each server block.
fn addresses(status: &Status) -> Vec<SocketAddr> {
    let tables = status.shared.tables.load();
    let served = tables.admin.iter();
    let served =
        served.filter(|(address, endpoints)| endpoints.health && !endpoints.by_tls && address.port() != 0);
    served.map(|(address, _)| *address).collect()
}

async fn check(checks: &SelfChecks, address: SocketAddr) {
    // `[::]` takes IPv4 as well, and falls back to 0.0.0.0 where there is no IPv6.
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    let begun = Instant::now();
    let answered = timeout(PATIENCE, ask(SocketAddr::new(ip, address.port()))).await;
    let took = begun.elapsed();
    checks.durations.observe(took);
    match answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(()) if took <= SLOW => {}
        Ok(()) => {
            tracing::warn!(%address, ?took, "/health took long to answer: this machine has too much to do");
        }
        Err(cause) => {
            checks.failures.add(1);
            tracing::warn!(%address, %cause, "/health does not answer this process itself");
        }
    }
}

/// Any response counts, whatever its status.
async fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut first = [0; 9];
    stream.read_exact(&mut first).await?;
    if first.starts_with(b"HTTP/1.") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
