//! Pods that are created as fast as the API server takes them, and a port that passes connections on to replicas.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::http::Request;
use kube::Client;
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, copy, sink};
use tokio::net::{TcpListener, TcpStream};

/// Requests under way at the same time.
const AT_ONCE: usize = 16;
/// One of so many pods is stored; the others are dry runs.
const STORED: u64 = 200;
/// Pods that are stored at most: they are cleared away by the test.
const MOST_STORED: u64 = 500;

/// What came of the load.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) asked: u64,
    pub(crate) stored: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
}

/// A load that runs on a thread of its own.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(kubeconfig: &str, namespace: &str, pod: &Value) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Counts::default())));
        let (file, namespace) = (kubeconfig.to_owned(), namespace.to_owned());
        let pod = serde_json::to_vec(pod).unwrap();
        let thread = std::thread::spawn({
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let file = Kubeconfig::read_from(file).unwrap();
                    let config =
                        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
                    let client = Client::try_from(config).unwrap();
                    let number = AtomicU64::new(1);
                    let one = || create(&client, &namespace, &pod, &stop, &counts, &number);
                    futures_util::future::join_all((0..AT_ONCE).map(|_| one())).await;
                });
            }
        });
        Self { stop, counts, thread: Some(thread) }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.lock().unwrap().clone()
    }

    pub(crate) fn stop(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.counts()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn create(
    client: &Client,
    namespace: &str,
    pod: &[u8],
    stop: &AtomicBool,
    counts: &Mutex<Counts>,
    number: &AtomicU64,
) {
    while !stop.load(Ordering::Relaxed) {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let stored = number.is_multiple_of(STORED) && number / STORED <= MOST_STORED;
        let dry_run = if stored { "" } else { "?dryRun=All" };
        let path = format!("/api/v1/namespaces/{namespace}/pods{dry_run}");
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(Body::from(pod.to_vec())).unwrap();
        let failure = match client.send(request).await {
            Ok(response) => {
                let status = response.status();
                let body = response.into_body().collect_bytes().await.unwrap_or_default();
                let text = String::from_utf8_lossy(&body);
                // A pod that was let in without us is a call that failed.
                let injected = text.contains("\"nodestub.io/status\":\"injected\"");
                (!status.is_success() || !injected).then(|| format!("{status}: {text}"))
            }
            Err(error) => Some(error.to_string()),
        };
        let mut counts = counts.lock().unwrap();
        counts.asked += 1;
        counts.stored += u64::from(stored);
        if let Some(failure) = failure {
            counts.failed += 1;
            counts.first_failure.get_or_insert(failure);
        }
    }
}

/// Passes each connection on to one replica after the other, leaving out those that do not answer, as a Service does.
pub(crate) struct Balancer {
    port: u16,
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
    connections: Arc<AtomicUsize>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Balancer {
    pub(crate) fn start() -> Self {
        Self::start_at(0)
    }

    pub(crate) fn start_at(port: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", port))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let replicas = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        runtime.spawn({
            let (replicas, connections) = (Arc::clone(&replicas), Arc::clone(&connections));
            async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let number = connections.fetch_add(1, Ordering::Relaxed);
                    let replicas: Vec<SocketAddr> = replicas.lock().unwrap().clone();
                    tokio::spawn(pass_on(stream, number, replicas));
                }
            }
        });
        Self { port, replicas, connections, runtime: Some(runtime) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, replicas: Vec<SocketAddr>) {
        *self.replicas.lock().unwrap() = replicas;
    }

    /// Connections so far: each is a handshake.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn pass_on(mut client: TcpStream, number: usize, replicas: Vec<SocketAddr>) {
    for next in 0..replicas.len() {
        let Ok(mut replica) = TcpStream::connect(replicas[(number + next) % replicas.len()]).await else {
            continue;
        };
        // Each way by itself, to its own end: what one end says last is told to the other, though that one can say no
        // more. `copy_bidirectional` lets go of both when either fails, and of the answers that it has read.
        let ((mut from_client, mut to_client), (mut from_replica, mut to_replica)) =
            (client.split(), replica.split());
        let up = async {
            if copy(&mut from_client, &mut to_replica).await.is_err() {
                drop(copy(&mut from_client, &mut sink()).await);
            }
            drop(to_replica.shutdown().await);
        };
        let down = async {
            drop(copy(&mut from_replica, &mut to_client).await);
            drop(to_client.shutdown().await);
        };
        tokio::join!(up, down);
        return;
    }
}
