//! Clients over TLS: the Corefile, the questions, and how they are asked.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nodestub_lab::dns::{read_framed, write_framed};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::question::{A, AAAA, NS, Question, TCP, TCP_EDNS, TXT, Way, all};
use crate::secure::Authority;

/// The Corefile.
pub(crate) const COREFILE: &str = ". tls://. {
 bind BIND
 tls FOLDER/server.crt FOLDER/server.key
 cache
 forward . 127.0.0.53
}
tls://only.test {
 bind BIND
 tls FOLDER/server.crt FOLDER/server.key
 hosts {
  192.0.2.77 a.only.test
  ttl 60
 }
}
";

/// Whose certificate both show.
pub(crate) const NAME: &str = "dns.test";

/// The usual ways.
const WAYS: [Way; 6] = [
    Way { tls: true, ..TCP },
    Way { tls: true, ..TCP_EDNS },
    Way { tls: true, dnssec_ok: true, ..TCP_EDNS },
    Way { tls: true, checking_disabled: true, ..TCP },
    Way { tls: true, authentic_data: true, ..TCP },
    Way { tls: true, v6: true, ..TCP },
];

pub(crate) fn questions() -> Vec<Question> {
    let names =
        ["a.test.", "four.test.", "alias.test.", "nx.test.", "empty.test.", "servfail.test.", "a.only.test."];
    all(&names, &[A, AAAA, TXT, NS], &WAYS)
}

/// A client's side of TLS.
pub(crate) fn believing(authority: &Authority) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    Arc::new(config)
}

/// One question on a connection of its own.
pub(crate) fn exchange(
    server: SocketAddr,
    packet: &[u8],
    config: &Arc<ClientConfig>,
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME).unwrap());
    let mut stream = StreamOwned::new(connection.map_err(io::Error::other)?, stream);
    write_framed(&mut stream, packet)?;
    stream.flush()?;
    read_framed(&mut stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
