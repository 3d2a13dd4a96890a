//! A small HTTPS client (HTTP/1.1, blocking) and the webhook as a real process.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// The name that the API server calls.
pub(crate) const SERVICE: &str = "nodestub-webhook.nodestub-system.svc";

/// How long a test waits for something that must come; only reached by a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A webhook that runs.
pub(crate) struct Webhook {
    process: Child,
    logs: Receiver<Value>,
    pub(crate) admission: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) folder: PathBuf,
}

impl Webhook {
    /// Starts it with certificates in that folder and further flags, on ports that the kernel chooses.
    pub(crate) fn start(folder: &Path, flags: &[String]) -> Self {
        Self::start_with(folder, flags, &[])
    }

    /// The same, with variables in its environment.
    pub(crate) fn start_with(folder: &Path, flags: &[String], variables: &[(&str, &str)]) -> Self {
        let ports = folder.join("ports");
        let mut process = Command::new(env!("CARGO_BIN_EXE_nodestub-webhook"))
            .args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--log-format=json"])
            .args(["--certificates-poll-milliseconds=10", "--ports-file"])
            .arg(&ports)
            .arg("--certificates")
            .arg(folder)
            .args(flags)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let (sender, logs) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let line = line.unwrap();
                let log = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(log).is_err() {
                    return;
                }
            }
        });
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut webhook =
            Self { process, logs, admission: unknown, admin: unknown, folder: folder.to_owned() };
        webhook.wait_for("listening");
        let text = std::fs::read_to_string(ports).unwrap();
        let port =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap();
        webhook.admission = port("admission=");
        webhook.admin = port("admin=");
        webhook
    }

    /// Waits for a line of log with that message.
    pub(crate) fn wait_for(&self, message: &str) -> Value {
        loop {
            let log = self.logs.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{message}: {error}"));
            if log["message"] == message {
                return log;
            }
        }
    }

    /// The lines of log since the last that was waited for.
    pub(crate) fn logged(&self) -> Vec<Value> {
        self.logs.try_iter().collect()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// A TLS connection that trusts the CA in the folder.
    pub(crate) fn connect(&self) -> std::io::Result<Tls> {
        connect(self.admission, &std::fs::read(self.folder.join("ca.crt")).unwrap(), &[])
    }

    /// Sends a body to `/mutate` on a connection of its own.
    pub(crate) fn mutate(&self, body: &[u8]) -> Response {
        self.send("POST", "/mutate", "application/json", body)
    }

    /// Sends any request on a TLS connection of its own.
    pub(crate) fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Response {
        let mut tls = self.connect().unwrap();
        tls.write_all(&head(method, path, kind, body.len())).unwrap();
        // The answer to a refused body may come before its end was sent.
        drop(tls.write_all(body));
        read_response(&mut tls)
    }

    /// Asks the admin port.
    pub(crate) fn admin(&self, path: &str) -> Response {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&head("GET", path, "text/plain", 0)).unwrap();
        read_response(&mut stream)
    }

    /// The value of one metric, with its labels as they are written.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.admin("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
    }

    /// The value of a counter.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let value = self.metric(name).to_string();
        value.parse().unwrap()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A TLS connection.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Connects and shakes hands, verifying chain, time and name.
pub(crate) fn connect(address: SocketAddr, trust: &[u8], alpn: &[&[u8]]) -> std::io::Result<Tls> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(trust) {
        roots.add(der.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(SERVICE).unwrap();
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(tls)
}

/// The head of a request.
pub(crate) fn head(method: &str, path: &str, kind: &str, length: usize) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: {SERVICE}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")
        .into_bytes()
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Reads a response to the end of its connection, or to its content length.
pub(crate) fn read_response(stream: &mut impl Read) -> Response {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|text| text.parse().unwrap());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    Response { status, body }
}

/// Issues certificates with the real binary.
pub(crate) fn issue_certificates(folder: &Path) {
    let done = Command::new(env!("CARGO_BIN_EXE_nodestub-webhook"))
        .args(["certificates", "--cluster-domain=cluster.local", "--ip=127.0.0.1", "--folder"])
        .arg(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}
