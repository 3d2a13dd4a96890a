//! Certificates, and a DNS server over TLS, for tests. It speaks through rustls, which ours does too: whether others
//! understand us is for `kdig` and `openssl` to say, where they are there.
#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses another part of it")]

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use nodestub_lab::Netns;
use nodestub_lab::dns::{read_framed, write_framed};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::{HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// Somebody who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For a host name or an IP address.
    pub(crate) fn sign(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }
}

/// What a server does with a question, by the number of its connection and of the question on it, both from 0.
pub(crate) enum Say {
    Answer(Vec<u8>),
    Nothing,
    /// Answers, and closes the connection.
    Last(Vec<u8>),
    /// Answers what was asked before, in this order.
    Several(Vec<Vec<u8>>),
}

/// A DNS server over TLS. Its threads end with the process.
pub(crate) struct Secure {
    pub(crate) seen: Arc<Seen>,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    pub(crate) resumed: AtomicUsize,
    pub(crate) questions: AtomicUsize,
    /// Handshakes in which the client showed a certificate.
    pub(crate) shown: AtomicUsize,
    pub(crate) sources: Mutex<Vec<IpAddr>>,
}

type Behaviour = dyn Fn(usize, usize, &[u8]) -> Say + Send + Sync;

impl Secure {
    /// `clients`: whose certificates are demanded.
    pub(crate) fn start(
        net: &Netns,
        address: &str,
        pair: &Pair,
        clients: Option<&Authority>,
        behaviour: impl Fn(usize, usize, &[u8]) -> Say + Send + Sync + 'static,
    ) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let listener = net.run(|| TcpListener::bind(address)).unwrap().unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = match clients {
            None => Arc::new(NoClientAuth) as Arc<_>,
            Some(authority) => {
                let roots = Arc::new(authority.roots());
                WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap()
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"dot".to_vec()];
        let (config, seen) = (Arc::new(config), Arc::new(Seen::default()));
        let (behaviour, for_thread): (Arc<Behaviour>, _) = (Arc::new(behaviour), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, seen) = (Arc::clone(&config), Arc::clone(&for_thread));
                let behaviour = Arc::clone(&behaviour);
                std::thread::spawn(move || serve(stream, config, &seen, &*behaviour));
            }
        });
        Self { seen }
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, seen: &Seen, behaviour: &Behaviour) {
    let source = stream.peer_addr().unwrap().ip();
    let number = seen.connections.fetch_add(1, SeqCst);
    seen.sources.lock().unwrap().push(source);
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut asked = 0;
    while let Ok(Some(query)) = read_framed(&mut stream) {
        if asked == 0 {
            let resumed = stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
            seen.resumed.fetch_add(usize::from(resumed), SeqCst);
            seen.shown.fetch_add(usize::from(stream.conn.peer_certificates().is_some()), SeqCst);
        }
        seen.questions.fetch_add(1, SeqCst);
        let (said, ends) = match behaviour(number, asked, &query) {
            Say::Answer(answer) => (vec![answer], false),
            Say::Nothing => (vec![], false),
            Say::Last(answer) => (vec![answer], true),
            Say::Several(answers) => (answers, false),
        };
        asked += 1;
        for answer in said {
            if write_framed(&mut stream, &answer).and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
        if ends {
            stream.conn.send_close_notify();
            drop(stream.flush());
            return;
        }
    }
}
