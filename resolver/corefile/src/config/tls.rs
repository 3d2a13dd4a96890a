//! TLS towards upstreams and towards clients: which files.

use std::path::PathBuf;

/// `tls [CERT KEY] [CA]` of `forward`: with what upstreams over TLS are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ForwardTls {
    /// What we show. Default: nothing.
    pub pair: Option<KeyPair>,
    /// Whom we believe, in PEM. Default: the authorities of the system.
    pub authorities: Option<PathBuf>,
}

/// `tls CERT KEY [CA] { client_auth MODE }`: how the `tls://` zones of a block are served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// What we show.
    pub pair: KeyPair,
    /// Whose clients are let in, in PEM, where their certificates are verified. Default: those of the authorities of the
    /// system.
    pub authorities: Option<PathBuf>,
    /// `client_auth`. Default [`ClientAuth::No`].
    pub client_auth: ClientAuth,
}

/// What is wanted of clients, by the names of CoreDNS; in brackets those of Go's `crypto/tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// `nocert` (`NoClientCert`): no certificate is asked for.
    No,
    /// `request` (`RequestClientCert`): it is asked for, and need not come; one that comes may be anybody's.
    Request,
    /// `require` (`RequireAnyClientCert`): it must come, and may be anybody's.
    RequireAny,
    /// `verify_if_given` (`VerifyClientCertIfGiven`): it need not come; one that comes must be of an authority.
    VerifyIfGiven,
    /// `require_and_verify` (`RequireAndVerifyClientCert`): it must come, and be of an authority.
    RequireAndVerify,
}

/// A certificate, with those between it and its authority, and its key; both in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl ClientAuth {
    /// Whether certificates that come are checked against authorities.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }
}
