//! TLS towards upstreams and towards clients: which files, and what is wanted of the other side.

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

/// `tls CERT KEY [CA] { client_auth TYPE }`: how zones with `tls://` are served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// What we show.
    pub pair: KeyPair,
    /// Authorities of clients' certificates, in PEM. Default: those of the system.
    pub client_authorities: Option<PathBuf>,
    /// What is wanted of clients. Default [`ClientAuth::None`].
    pub client_auth: ClientAuth,
}

/// `client_auth`, by its words (Go's `ClientAuthType`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// `nocert`: no certificate is asked for.
    #[default]
    None,
    /// `request`: it is asked for, and need not come; one that comes may be anybody's.
    Request,
    /// `require`: it must come, and may be anybody's.
    Require,
    /// `verify_if_given`: it need not come; one that comes must be of an authority.
    VerifyIfGiven,
    /// `require_and_verify`: it must come, and be of an authority.
    RequireAndVerify,
}
