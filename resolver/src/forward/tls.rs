//! TLS towards upstreams: files of `tls` and the system's authorities, to what connections are made with.
//!
//! Read when a Corefile is compiled, and again at each reload: [`Material`] is compared with what a running `forward` was
//! made of, so that it keeps its connections where nothing has changed. One configuration for each `forward`, and so one
//! memory of sessions: a second handshake with the same server is short (RFC 8446, 2.2).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nodestub_corefile::config::tls::ForwardTls;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::pem;

/// Who is asked over TLS, and with what.
#[derive(Clone)]
pub(super) struct Secured {
    pub(super) connector: TlsConnector,
    /// What the certificate must be for.
    pub(super) name: ServerName<'static>,
}

/// What the files held.
#[derive(Debug, PartialEq, Eq)]
pub struct Material {
    pair: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    authorities: Vec<CertificateDer<'static>>,
}

/// Why upstreams cannot be asked over TLS.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    File(PathBuf, String),
    /// The system has no authorities.
    NoAuthorities(String),
    /// No certificate can be for such a name.
    Name(String),
    /// The library refuses what was read: a key of another certificate, say.
    Refused(rustls::Error),
}

impl Material {
    /// Reads what `tls` names.
    ///
    /// # Errors
    /// It is not there, or not in PEM.
    pub fn read(config: &ForwardTls) -> Result<Self, TlsError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |problem| TlsError::File(path, problem)
        };
        let certificates = |path: &PathBuf| pem::certificates(path).map_err(file(path));
        let pair = match &config.pair {
            None => None,
            Some(pair) => {
                Some((certificates(&pair.certificate)?, pem::key(&pair.key).map_err(file(&pair.key))?))
            }
        };
        let authorities = match &config.authorities {
            Some(path) => certificates(path)?,
            None => authorities_of_the_system()?,
        };
        Ok(Self { pair, authorities })
    }

    /// TLS 1.2 at least, as CoreDNS.
    ///
    /// # Errors
    /// Key and certificate are not a pair, or no authority can be believed.
    pub fn configure(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::empty();
        // A system's folder has now and then one that nobody can read.
        let (added, ignored) = roots.add_parsable_certificates(self.authorities.iter().cloned());
        if added == 0 {
            return Err(TlsError::NoAuthorities(format!("none of {ignored} certificates can be one")));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Refused)?
            .with_root_certificates(roots);
        let mut config = match &self.pair {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(TlsError::Refused)?
            }
        };
        // RFC 7858, 3.2; servers that know nothing of it take no offence.
        config.alpn_protocols = vec![b"dot".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Those of the image or the machine; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others, as for CoreDNS.
fn authorities_of_the_system() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or_else(|| "no file has any".to_owned(), ToString::to_string);
        return Err(TlsError::NoAuthorities(why));
    }
    Ok(found.certs)
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secured").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, problem) => write!(f, "{}: {problem}", path.display()),
            Self::NoAuthorities(why) => {
                write!(
                    f,
                    "no authorities to verify by ({why}): name a file of them, or install ca-certificates"
                )
            }
            Self::Name(name) => write!(f, "no certificate can be for {name:?}: write a host name"),
            Self::Refused(cause) => write!(f, "certificate and key cannot be used together: {cause}"),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(cause) => Some(cause),
            Self::File(..) | Self::NoAuthorities(_) | Self::Name(_) => None,
        }
    }
}
