//! TLS towards upstreams: which files.

use std::path::PathBuf;

/// `tls [CERT KEY] [CA]` of `forward`: with what upstreams over TLS are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ForwardTls {
    /// What we show. Default: nothing.
    pub pair: Option<KeyPair>,
    /// Whom we believe, in PEM. Default: the authorities of the system.
    pub authorities: Option<PathBuf>,
}

/// A certificate, with those between it and its authority, and its key; both in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}
