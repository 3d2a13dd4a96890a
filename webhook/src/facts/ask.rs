//! Asks every node's resolver for its metrics page, in rounds.
//!
//! The resolver has no rights in the cluster and no client for it, so it cannot tell by itself; its pods' readiness
//! says that it answers, not what happens when it does not. Its metrics page is there for anybody who asks, so asking
//! needs no rights on either side but to know the addresses (`EndpointSlice`s of its Service).
//!
//! Bounds: [`reports::MAX_NODES`] nodes, [`AT_ONCE`] at the same time, [`TIMEOUT`] and [`MAX_PAGE_BYTES`] for each.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, unfold};
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::reports::{self, Report, Reports};
use crate::metrics::Metrics;

/// Where a node's resolver can be asked, by the node's name.
pub(super) type Nodes = BTreeMap<String, IpAddr>;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(15);
/// After the nodes have changed: what changes together is asked together.
const SETTLE: Duration = Duration::from_millis(500);
/// Nodes that are asked at the same time.
const AT_ONCE: usize = 32;
/// How long one node may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The largest page, in bytes: a resolver with thousands of zones stays far below.
const MAX_PAGE_BYTES: u64 = 8 * 1024 * 1024;

/// Rounds without end: the reports of all nodes, each time all have answered or failed to.
pub(super) fn rounds(
    nodes: watch::Receiver<Nodes>,
    port: u16,
    metrics: Arc<Metrics>,
) -> BoxStream<'static, Reports> {
    let first = Duration::ZERO;
    unfold((nodes, first), move |(mut nodes, pause)| {
        let metrics = Arc::clone(&metrics);
        async move {
            tokio::select! {
                () = sleep(pause) => {}
                changed = nodes.changed() => {
                    // Nobody will tell of nodes any more: the webhook ends.
                    changed.ok()?;
                    sleep(SETTLE).await;
                }
            }
            let now = nodes.borrow_and_update().clone();
            let reports = ask_all(now, port).await;
            let silent = reports.values().filter(|one| matches!(one, Report::Silent(_))).count();
            metrics.nodes_asked(reports.len(), silent);
            Some((reports, (nodes, INTERVAL)))
        }
    })
    .boxed()
}

async fn ask_all(nodes: Nodes, port: u16) -> Reports {
    let asks = nodes.into_iter().take(reports::MAX_NODES).map(|(name, address)| async move {
        let report = match timeout(TIMEOUT, page(SocketAddr::new(address, port))).await {
            Ok(Ok(page)) => Report::read(&page),
            Ok(Err(error)) => Report::Silent(error.to_string()),
            Err(_) => Report::Silent(AskError::Timeout.to_string()),
        };
        (name, report)
    });
    stream::iter(asks).buffer_unordered(AT_ONCE).collect().await
}

/// The metrics page of one resolver: HTTP/1.0, so that the body is what comes until the end.
async fn page(address: SocketAddr) -> Result<String, AskError> {
    let mut stream = TcpStream::connect(address).await.map_err(AskError::Connect)?;
    let request = format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\naccept: text/plain\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(AskError::Talk)?;
    let mut bytes = Vec::new();
    stream.take(MAX_PAGE_BYTES).read_to_end(&mut bytes).await.map_err(AskError::Talk)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(AskError::NotHttp)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(AskError::NotHttp)?;
    if status == 200 { Ok(body.to_owned()) } else { Err(AskError::Status(status)) }
}

/// Why a node's page did not come.
#[derive(Debug)]
enum AskError {
    Connect(io::Error),
    Talk(io::Error),
    NotHttp,
    Status(u16),
    Timeout,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "its metrics page cannot be reached: {error}"),
            Self::Talk(error) => write!(f, "asking for its metrics page broke off: {error}"),
            Self::NotHttp => f.write_str("what listens on its metrics port speaks no HTTP"),
            Self::Status(status) => write!(f, "its metrics page answers with status {status}"),
            Self::Timeout => f.write_str("its metrics page gave no answer in time"),
        }
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(source) | Self::Talk(source) => Some(source),
            Self::NotHttp | Self::Status(_) | Self::Timeout => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use nodestub_certs::Resolver;
    use tokio::net::TcpListener;

    use super::*;

    /// A page on an address of its own, in the same way to everybody; gives its port.
    async fn serve(address: &str, port: u16, answer: &'static str) -> u16 {
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                drop(stream.read(&mut request).await);
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        port
    }

    #[tokio::test]
    async fn asks_every_node_and_takes_no_answer_for_silence() {
        let port = serve(
            "127.0.0.1",
            0,
            "HTTP/1.1 200 OK\r\n\r\nnodestub_fail_open{address=\"::1\",state=\"works\"} 1\n",
        )
        .await;
        serve("127.0.0.2", port, "HTTP/1.1 503 Not yet\r\n\r\nnodestub_fail_open{state=\"works\"} 1\n").await;
        serve("127.0.0.3", port, "not HTTP").await;
        serve("127.0.0.4", port, "HTTP/1.1 200 OK\r\n\r\nnodestub_ready 1\n").await;
        // Nobody listens on 127.0.0.5.
        let address = |last: u8| IpAddr::from([127, 0, 0, last]);
        let nodes: Nodes = (1..=5).map(|last| (format!("node-{last}"), address(last))).collect();
        let reports = ask_all(nodes, port).await;
        let why = |node: &str| match &reports[node] {
            Report::Said(_) => String::new(),
            Report::Silent(why) => why.clone(),
        };
        assert!(reports["node-1"].covers(&["::1".parse().unwrap()]));
        assert!(why("node-2").contains("status 503"), "{}", why("node-2"));
        assert!(why("node-3").contains("no HTTP"), "{}", why("node-3"));
        assert!(why("node-4").contains("no nodestub_fail_open"), "{}", why("node-4"));
        assert!(why("node-5").contains("cannot be reached"), "{}", why("node-5"));
    }

    #[tokio::test]
    async fn asks_anew_when_the_nodes_change_and_ends_when_nobody_tells_of_them() {
        let port =
            serve("127.0.0.1", 0, "HTTP/1.1 200 OK\r\n\r\nnodestub_fail_open{state=\"works\"} 1\n").await;
        let (sender, receiver) = watch::channel(Nodes::new());
        let metrics = Arc::new(Metrics::new(Resolver::empty()));
        let mut rounds = rounds(receiver, port, Arc::clone(&metrics));
        assert_eq!(rounds.next().await, Some(Reports::new()));
        sender.send(Nodes::from([("a".to_owned(), IpAddr::from([127, 0, 0, 1]))])).unwrap();
        assert_eq!(rounds.next().await.unwrap().len(), 1);
        assert!(metrics.text().unwrap().contains("nodestub_webhook_reporting_nodes{answer=\"yes\"} 1"));
        drop(sender);
        assert_eq!(rounds.next().await, None);
    }
}
