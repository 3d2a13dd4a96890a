//! TLS towards upstreams: files of `tls` and the system's authorities, to what connections are made with.
//!
//! Read when a Corefile is compiled, and again at each reload: [`Material`] is compared with what a running `forward` was
//! made of, so that it keeps its connections where nothing has changed. One configuration for each `forward`, and so one
//! memory of sessions: a second handshake with the same server is short (RFC 8446, 2.2).

use std::sync::Arc;

use nodestub_corefile::config::tls::ForwardTls;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use crate::pem::{self, TlsError};

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
    pair: Option<pem::Pair>,
    authorities: Vec<CertificateDer<'static>>,
}

impl Material {
    /// Reads what `tls` names.
    ///
    /// # Errors
    /// It is not there, or not in PEM.
    pub fn read(config: &ForwardTls) -> Result<Self, TlsError> {
        let pair = config.pair.as_ref().map(pem::pair).transpose()?;
        let authorities = pem::authorities(config.authorities.as_deref())?;
        Ok(Self { pair, authorities })
    }

    /// TLS 1.2 at least, as CoreDNS.
    ///
    /// # Errors
    /// Key and certificate are not a pair, or no authority can be believed.
    pub fn configure(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let roots = pem::roots(&self.authorities)?;
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

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secured").field("name", &self.name).finish_non_exhaustive()
    }
}
