//! Certificates, the daemon, and a client that speaks TLS.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nodestub_lab::dns::{self, read_framed, write_framed};
use nodestub_lab::skip::can_make_namespaces;
use nodestub_lab::upstream::{Data, Reply, answer, question};
use nodestub_lab::{Answer, Netns, Options, Upstream};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::common::{HANG, Scene, resolver, upstream_in};
use crate::secure::{Authority, Pair};

/// Where the daemon answers over TLS.
pub(crate) const TLS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 853);

/// What the upstream says.
pub(crate) const RIGHT: &str = "192.0.2.1";

/// Behind the words of `tls`: connections may be silent for longer than anything here takes.
pub(crate) const PATIENT: &str = "\n timeouts {\n read 4m\n idle 4m\n }";

/// A namespace and a folder: `server.crt` and `server.key` are for `dns.test`, of the authority `ca.crt`.
pub(crate) struct Stage {
    pub(crate) net: Netns,
    folder: PathBuf,
    owned: Option<TempDir>,
    pub(crate) authority: Authority,
}

/// A stage with the daemon and its upstream at work.
pub(crate) struct Served {
    pub(crate) scene: Scene,
    pub(crate) upstream: Upstream,
}

impl Deref for Served {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl std::ops::DerefMut for Served {
    fn deref_mut(&mut self) -> &mut Scene {
        &mut self.scene
    }
}

impl Stage {
    /// `None`: this machine makes no namespaces, which has been said.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !can_make_namespaces(test) {
            return None;
        }
        let owned = tempfile::tempdir().unwrap();
        let folder = owned.path().to_owned();
        let stage =
            Self { net: Netns::new().unwrap(), folder, owned: Some(owned), authority: Authority::new() };
        std::fs::write(stage.path("ca.crt"), &stage.authority.pem).unwrap();
        stage.write("server", &stage.authority.sign("dns.test"));
        Some(stage)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Each file in the place of the old one, whole.
    pub(crate) fn write(&self, name: &str, pair: &Pair) {
        for (kind, text) in [("crt", &pair.certificate), ("key", &pair.key)] {
            std::fs::write(self.path("new"), text).unwrap();
            std::fs::rename(self.path("new"), self.path(&format!("{name}.{kind}"))).unwrap();
        }
    }

    /// Writes a Corefile; `FOLDER` in it is the folder.
    pub(crate) fn corefile(&self, text: &str) -> PathBuf {
        let path = self.path("Corefile");
        std::fs::write(&path, self.in_folder(text)).unwrap();
        path
    }

    pub(crate) fn in_folder(&self, text: &str) -> String {
        text.replace("FOLDER", self.folder.to_str().unwrap())
    }

    /// One `tls://` block; `more` stands behind certificate and key.
    pub(crate) fn serve(&self, more: &str) -> Served {
        self.serve_text(&format!(
            "tls://. {{\n bind 127.0.0.1\n tls FOLDER/server.crt FOLDER/server.key {more}\n cache 300\n errors\n forward . \
             127.0.0.2\n prometheus 127.0.0.1:9153\n}}\n"
        ))
    }

    /// The stage keeps its folder for as long as it lives.
    pub(crate) fn serve_text(&self, text: &str) -> Served {
        let upstream = upstream(&self.net);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Corefile"), self.in_folder(text)).unwrap();
        let command = resolver(&folder.path().join("Corefile"));
        Served { scene: Scene::of(self.net.try_clone().unwrap(), command, folder), upstream }
    }

    /// A client that believes our authority, speaks what there is, and shows nothing.
    pub(crate) fn trust(&self) -> Trust<'_> {
        Trust { authority: &self.authority, pair: None, versions: ALL_VERSIONS, alpn: &["dot"] }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.owned.take());
    }
}

/// Names that begin with `late` and `slow` are answered after half a second and one.
pub(crate) fn upstream(net: &Netns) -> Upstream {
    upstream_in(net, "127.0.0.2:53", |query, _| {
        let Ok((name, _)) = question(query) else { return vec![] };
        let delay = match () {
            () if name.starts_with("slow") => 1_000,
            () if name.starts_with("late") => 500,
            () => 0,
        };
        let right = Data::A(RIGHT.parse().unwrap());
        let reply = Reply::now(answer(query, &[(&name, 300, right)]).unwrap());
        vec![reply.after(Duration::from_millis(delay))]
    })
}

/// How a client shakes hands.
#[derive(Clone, Copy)]
pub(crate) struct Trust<'a> {
    pub(crate) authority: &'a Authority,
    pub(crate) pair: Option<&'a Pair>,
    pub(crate) versions: &'a [&'static SupportedProtocolVersion],
    pub(crate) alpn: &'a [&'a str],
}

impl Trust<'_> {
    /// With a memory of sessions of its own.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(self.authority.roots());
        let mut config = match self.pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A connection that is through its handshake.
pub(crate) struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Served {
    pub(crate) fn connect(&self, trust: &Trust<'_>) -> Client {
        self.try_connect(trust)
            .unwrap_or_else(|error| panic!("{error}\nthe daemon said:\n{}", self.daemon.lines().join("\n")))
    }

    pub(crate) fn connect_to(&self, address: &str, trust: &Trust<'_>) -> Client {
        connect(&self.net, address.parse().unwrap(), &trust.config()).unwrap()
    }

    pub(crate) fn try_connect(&self, trust: &Trust<'_>) -> io::Result<Client> {
        self.try_connect_with(&trust.config())
    }

    pub(crate) fn try_connect_with(&self, config: &Arc<ClientConfig>) -> io::Result<Client> {
        connect(&self.net, TLS, config)
    }
}

/// Shakes hands as a client that wants `dns.test`.
pub(crate) fn connect(net: &Netns, address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Client> {
    shake_hands(net.run(|| TcpStream::connect_timeout(&address, HANG)).unwrap()?, config)
}

/// The same, on a connection that is there.
pub(crate) fn shake_hands(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Client> {
    stream.set_read_timeout(Some(HANG))?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("dns.test").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Client(stream))
}

impl Client {
    pub(crate) fn conn(&self) -> &ClientConnection {
        &self.0.conn
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.0.sock
    }

    pub(crate) fn ask(&mut self, name: &str) -> Answer {
        self.try_ask(name).unwrap()
    }

    pub(crate) fn try_ask(&mut self, name: &str) -> io::Result<Answer> {
        write_framed(&mut self.0, &asked(name))?;
        self.0.flush()?;
        self.try_receive()
    }

    /// All of them in one write.
    pub(crate) fn send_all(&mut self, queries: &[Vec<u8>]) {
        self.try_send_all(queries).unwrap();
    }

    pub(crate) fn try_send_all(&mut self, queries: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for query in queries {
            write_framed(&mut bytes, query)?;
        }
        self.0.write_all(&bytes)?;
        self.0.flush()
    }

    pub(crate) fn receive(&mut self) -> Answer {
        self.try_receive().unwrap()
    }

    fn try_receive(&mut self) -> io::Result<Answer> {
        let raw = read_framed(&mut self.0)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Answer::parse(&raw).unwrap())
    }

    /// Whether the server takes leave, and says so by close_notify: a bare end of the connection is an error of TLS.
    pub(crate) fn is_taken_leave_of(&mut self) -> bool {
        matches!(read_framed(&mut self.0), Ok(None))
    }

    /// The certificate that the server has shown.
    pub(crate) fn shown(&self) -> CertificateDer<'static> {
        self.conn().peer_certificates().unwrap()[0].clone().into_owned()
    }
}

pub(crate) fn asked(name: &str) -> Vec<u8> {
    dns::query(name, "A", &Options::default()).unwrap()
}

/// A query whose OPT record carries these options.
pub(crate) fn with_option(name: &str, options: &[u8]) -> Vec<u8> {
    let mut query = dns::query(name, "A", &Options::edns(1232)).unwrap();
    let length_at = query.len() - 1;
    query[length_at] = u8::try_from(options.len()).unwrap();
    query.extend_from_slice(options);
    query
}

/// A connection without a handshake, from an address of one's choice.
pub(crate) fn bare(net: &Netns, from: [u8; 4]) -> TcpStream {
    net.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&TLS.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream
    })
    .unwrap()
}
