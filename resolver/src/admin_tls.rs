//! HTTPS for metrics: `-metrics-listen-address` by the `-tls-*` flags of kubernetes-sigs/node-local-dns, and `prometheus` by its
//! `tls` FILE (`web_config`).
//!
//! ```text
//!   flags, or a file ─► Tls::new, Tls::of_file: files read, refused here ─► TlsListener: each handshake in a task of its own ─► axum
//!                              ▲                          │
//!                              └── again when one changed ┘
//! ```
//!
//! The reference is its metrics server, which is Prometheus' exporter-toolkit: names of client authentication and of TLS
//! versions, and what does not go together. Certificates are read again when their files change; one that then does not
//! read leaves the last good one in place. TLS before 1.2 is not offered.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use nodestub_corefile::config::tls as config;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::{client_auth, pem, web_config};

/// Handshakes under way at once; a further client waits in the kernel.
const HANDSHAKES: usize = 16;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause after accepting failed: too many open files, most likely.
const PAUSE: Duration = Duration::from_millis(50);

/// How `-metrics-listen-address` is served, or what a file says of `prometheus`.
#[derive(Debug, Clone, Args)]
pub struct TlsFlags {
    /// Serve `-metrics-listen-address` (without one: 0.0.0.0:9353) by HTTPS.
    #[arg(
        long = "tls-enabled",
        value_name = "BOOL",
        default_value = "false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = crate::args::switch,
        action = clap::ArgAction::Set
    )]
    pub enabled: bool,
    /// Its certificate, with those between it and its authority, in PEM.
    #[arg(long = "tls-cert-file", value_name = "FILE", default_value = "/etc/ssl/tls.crt")]
    pub certificate: PathBuf,
    /// The certificate's key, in PEM.
    #[arg(long = "tls-private-key-file", value_name = "FILE", default_value = "/etc/ssl/tls.key")]
    pub key: PathBuf,
    /// Authorities of clients' certificates, in PEM.
    #[arg(long = "tls-client-ca-file", value_name = "FILE", default_value = "", value_parser = crate::args::maybe_path)]
    pub client_ca: PathBuf,
    /// What is wanted of clients.
    #[arg(long = "tls-client-auth-type", value_name = "TYPE", value_enum, default_value = "NoClientCert")]
    pub client_auth: ClientAuth,
    /// The oldest TLS that is spoken.
    #[arg(long = "tls-min-version", value_name = "VERSION", value_enum, default_value = "TLS13")]
    pub min_version: MinVersion,
}

/// By the names of Go's `crypto/tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClientAuth {
    /// No certificate is asked for.
    #[value(name = "NoClientCert")]
    No,
    /// It is asked for, and need not come; one that comes may be anybody's.
    #[value(name = "RequestClientCert")]
    Request,
    /// It must come, and may be anybody's.
    #[value(name = "RequireAnyClientCert", alias = "RequireClientCert")]
    RequireAny,
    /// It need not come; one that comes must be of an authority.
    #[value(name = "VerifyClientCertIfGiven")]
    VerifyIfGiven,
    /// It must come, and be of an authority.
    #[value(name = "RequireAndVerifyClientCert")]
    RequireAndVerify,
}

/// By the names of exporter-toolkit, or of Kubernetes' own flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MinVersion {
    /// TLS 1.2.
    #[value(name = "TLS12", alias = "VersionTLS12")]
    Tls12,
    /// TLS 1.3.
    #[value(name = "TLS13", alias = "VersionTLS13")]
    Tls13,
}

/// Why it cannot be served so.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    File {
        /// Which flag names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Flags that do not go together.
    Flags(&'static str),
    /// The file of `prometheus`'s `tls`, or one that it names.
    WebConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The library refuses what was read: a key of another certificate, say.
    Refused(rustls::Error),
}

/// What handshakes are done with.
#[derive(Debug)]
pub struct Tls {
    /// Where [`Current::flags`] stand, if not on the command line.
    file: Option<PathBuf>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    flags: TlsFlags,
    stamps: Stamps,
    config: Arc<ServerConfig>,
}

/// When each file was changed; `None`: it is not there.
type Stamps = [Option<SystemTime>; 4];

impl Tls {
    /// Reads the files; `None` where HTTPS is not asked for.
    ///
    /// # Errors
    /// What is asked for cannot be had.
    pub fn new(flags: &TlsFlags) -> Result<Option<Arc<Self>>, TlsError> {
        if !flags.enabled {
            return Ok(None);
        }
        let stamps = stamps(None, flags);
        let current = Mutex::new(Current { flags: flags.clone(), stamps, config: configure(flags)? });
        Ok(Some(Arc::new(Self { file: None, current })))
    }

    /// As a web configuration says; `None` where that says nothing of TLS.
    ///
    /// # Errors
    /// It says what is not supported, or what cannot be had.
    pub fn of_file(file: &Path) -> Result<Option<Arc<Self>>, TlsError> {
        let before = stamp(file);
        let Some((flags, config)) = read_file(file)? else { return Ok(None) };
        let stamps = [before, stamp(&flags.certificate), stamp(&flags.key), stamp(&flags.client_ca)];
        let current = Mutex::new(Current { flags, stamps, config });
        Ok(Some(Arc::new(Self { file: Some(file.to_owned()), current })))
    }

    /// Where it stands.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// As the files are now; where they cannot be served, as they were.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = stamps(self.file(), &current.flags);
        if current.stamps != fresh {
            current.stamps = fresh;
            match self.read_again(&current.flags) {
                Ok((flags, config)) => {
                    current.stamps = stamps(self.file(), &flags);
                    current.flags = flags;
                    current.config = config;
                    tracing::info!("the certificate for metrics has changed");
                }
                Err(error) => {
                    tracing::error!(%error, "the changed certificate for metrics is refused; the last good one stays");
                }
            }
        }
        Arc::clone(&current.config)
    }

    fn read_again(&self, flags: &TlsFlags) -> Result<(TlsFlags, Arc<ServerConfig>), TlsError> {
        let Some(file) = &self.file else { return Ok((flags.clone(), configure(flags)?)) };
        let problem = || "it says nothing of TLS any more; that takes a reload of the Corefile".to_owned();
        read_file(file)?.ok_or_else(|| TlsError::WebConfig { path: file.clone(), problem: problem() })
    }
}

fn read_file(file: &Path) -> Result<Option<(TlsFlags, Arc<ServerConfig>)>, TlsError> {
    let wrong = |problem| TlsError::WebConfig { path: file.to_owned(), problem };
    let Some(flags) = web_config::read(file).map_err(wrong)? else { return Ok(None) };
    let in_words = |error: TlsError| {
        // The options of the file, where the flags are meant for the command line.
        let mut text = error.to_string();
        for (flag, option) in [
            ("-tls-cert-file", "cert_file"),
            ("-tls-private-key-file", "key_file"),
            ("-tls-client-ca-file", "client_ca_file"),
            ("-tls-client-auth-type", "client_auth_type"),
        ] {
            text = text.replace(flag, option);
        }
        wrong(text)
    };
    let config = configure(&flags).map_err(in_words)?;
    Ok(Some((flags, config)))
}

fn stamps(file: Option<&Path>, flags: &TlsFlags) -> Stamps {
    [file.and_then(stamp), stamp(&flags.certificate), stamp(&flags.key), stamp(&flags.client_ca)]
}

fn stamp(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn configure(flags: &TlsFlags) -> Result<Arc<ServerConfig>, TlsError> {
    const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    let versions = match flags.min_version {
        MinVersion::Tls12 => BOTH,
        MinVersion::Tls13 => BOTH.get(..1).unwrap_or_default(),
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates("-tls-cert-file", &flags.certificate)?;
    let key = pem::key(&flags.key).map_err(|problem| file("-tls-private-key-file", &flags.key, problem))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(versions).map_err(TlsError::Refused)?;
    let builder = builder.with_client_cert_verifier(verifier(flags, &provider)?);
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn verifier(
    flags: &TlsFlags,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let has_ca = !flags.client_ca.as_os_str().is_empty();
    let kind = config::ClientAuth::from(flags.client_auth);
    if has_ca && kind == config::ClientAuth::No {
        return Err(TlsError::Flags(
            "-tls-client-ca-file says whose clients are let in, and -tls-client-auth-type that none is asked: give \
             RequireAndVerifyClientCert, or leave the file away",
        ));
    }
    if let Some(verifier) = client_auth::of_anybody(kind, provider) {
        return Ok(verifier);
    }
    if !has_ca {
        return Err(TlsError::Flags(
            "this -tls-client-auth-type verifies clients' certificates: name their authorities with \
             -tls-client-ca-file",
        ));
    }
    let flag = "-tls-client-ca-file";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, &flags.client_ca)? {
        roots.add(certificate).map_err(|error| file(flag, &flags.client_ca, error.to_string()))?;
    }
    let mandatory = kind == config::ClientAuth::RequireAndVerify;
    let built = client_auth::of_authorities(roots, mandatory, true, provider);
    built.map_err(|error| file(flag, &flags.client_ca, error.to_string()))
}

impl From<ClientAuth> for config::ClientAuth {
    fn from(flag: ClientAuth) -> Self {
        match flag {
            ClientAuth::No => Self::No,
            ClientAuth::Request => Self::Request,
            ClientAuth::RequireAny => Self::RequireAny,
            ClientAuth::VerifyIfGiven => Self::VerifyIfGiven,
            ClientAuth::RequireAndVerify => Self::RequireAndVerify,
        }
    }
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem::certificates(path).map_err(|problem| file(flag, path, problem))
}

fn file(flag: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError::File { flag, path: path.to_owned(), problem }
}

/// Accepts connections and does their handshakes.
#[derive(Debug)]
pub struct TlsListener {
    tcp: TcpListener,
    tls: Arc<Tls>,
    shaking: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl TlsListener {
    /// On a listening socket.
    pub fn new(tcp: TcpListener, tls: Arc<Tls>) -> Self {
        Self { tcp, tls, shaking: JoinSet::new() }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                accepted = self.tcp.accept(), if self.shaking.len() < HANDSHAKES => match accepted {
                    Ok((stream, client)) => {
                        let acceptor = TlsAcceptor::from(self.tls.config());
                        self.shaking.spawn(async move {
                            // Who does not get through is told so by TLS, and is nobody that we know.
                            let shaken = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await;
                            shaken.ok()?.ok().map(|stream| (stream, client))
                        });
                    }
                    Err(_) => tokio::time::sleep(PAUSE).await,
                },
                Some(done) = self.shaking.join_next() => if let Ok(Some(through)) = done {
                    return through;
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { flag, path, problem } => write!(f, "{flag} {}: {problem}", path.display()),
            Self::Flags(problem) => f.write_str(problem),
            Self::WebConfig { path, problem } => write!(f, "{}: {problem}", path.display()),
            Self::Refused(cause) => {
                write!(f, "-tls-cert-file and -tls-private-key-file cannot be served together: {cause}")
            }
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(cause) => Some(cause),
            Self::File { .. } | Self::Flags(_) | Self::WebConfig { .. } => None,
        }
    }
}
