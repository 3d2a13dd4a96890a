//! Whether a client that trusts these CAs takes this certificate for that name, as the API server would.
//!
//! By rustls' own verifier (webpki): chain, time, name, purpose. One thing is Go's and not webpki's: a certificate that
//! is itself in the bundle is trusted even if it calls itself a CA, as `openssl req -x509` makes them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::bundle::Root;

/// Verifies the chain, leaf first, for a DNS name or IP address.
///
/// # Errors
/// The first reason to refuse it.
pub fn verify(
    chain: &[CertificateDer<'static>],
    roots: &[&Root],
    host: &str,
    now: SystemTime,
) -> Result<(), TrustError> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Err(TrustError::NoCertificate) };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TrustError::Host(host.to_owned()))?;
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    if let Some(root) = roots.iter().find(|root| root.der() == leaf) {
        return itself(root, leaf, &name, now);
    }
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().map(|root| root.der().clone()));
    if store.is_empty() {
        return Err(TrustError::NoRoots);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), crate::crypto_provider());
    let verifier = verifier.build().map_err(|_| TrustError::NoRoots)?;
    let time = UnixTime::since_unix_epoch(seconds);
    let verified = rustls::client::danger::ServerCertVerifier::verify_server_cert(
        verifier.as_ref(),
        leaf,
        intermediates,
        &name,
        &[],
        time,
    );
    verified.map(|_| ()).map_err(TrustError::Refused)
}

fn itself(
    root: &Root,
    leaf: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: SystemTime,
) -> Result<(), TrustError> {
    if !root.validity.contains(now) {
        return Err(TrustError::OutOfTime);
    }
    let names = crate::pair::names(leaf);
    let wanted = name.to_str();
    let is_named = names.iter().any(|name| name.eq_ignore_ascii_case(&wanted));
    if is_named { Ok(()) } else { Err(TrustError::Name(wanted.into_owned())) }
}

/// Why a client would not take it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TrustError {
    /// There is no certificate.
    NoCertificate,
    /// The bundle is empty, or holds no CA.
    NoRoots,
    /// What the client asks for is neither a DNS name nor an address.
    Host(String),
    /// The certificate is trusted itself, but out of its time.
    OutOfTime,
    /// The certificate is trusted itself, but not for that name.
    Name(String),
    /// Refused for another reason.
    Refused(rustls::Error),
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use rustls::CertificateError as Why;
        match self {
            Self::NoCertificate => f.write_str("there is no certificate"),
            Self::NoRoots => f.write_str("there is no CA to trust"),
            Self::Host(host) => write!(f, "{host:?} is no name or address that a certificate could have"),
            Self::OutOfTime => f.write_str("the certificate is out of its time"),
            Self::Name(name) => write!(f, "the certificate is not good for {name}"),
            Self::Refused(rustls::Error::InvalidCertificate(why)) => match why {
                Why::UnknownIssuer | Why::BadSignature => {
                    f.write_str("none of the CAs signed the certificate")
                }
                Why::Expired | Why::ExpiredContext { .. } => f.write_str("the certificate has ended"),
                Why::NotValidYet | Why::NotValidYetContext { .. } => {
                    f.write_str("the certificate is not valid yet")
                }
                Why::NotValidForName => f.write_str("the certificate is not good for that name"),
                Why::NotValidForNameContext { expected, .. } => {
                    write!(f, "the certificate is not good for {}", expected.to_str())
                }
                other => write!(f, "the certificate is refused: {other}"),
            },
            Self::Refused(error) => write!(f, "the certificate is refused: {error}"),
        }
    }
}

impl std::error::Error for TrustError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused(source) => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::issue::ServingNames;
    use crate::pair::Pair;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn names() -> ServingNames {
        ServingNames {
            service: "web".to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: vec!["127.0.0.1".parse().unwrap()],
            extra: Vec::new(),
        }
    }

    #[test]
    fn says_why_a_certificate_is_refused() {
        let now = SystemTime::now();
        let (ours, theirs) = (Authority::new(DAY, now).unwrap(), Authority::new(DAY, now).unwrap());
        let pair = Pair::parse(&ours.sign(&names(), DAY, now).unwrap(), now).unwrap();
        let (ours, theirs) = (ours.root(), theirs.root());
        let verdict = |roots: &[&Root], host: &str, now| {
            verify(pair.chain(), roots, host, now).map_err(|error| error.to_string())
        };
        assert_eq!(verdict(&[theirs, ours], "web.here.svc", now), Ok(()));
        assert_eq!(verdict(&[ours], "127.0.0.1", now), Ok(()));
        let said = |roots: &[&Root], host: &str, now, text: &str| {
            let error = verdict(roots, host, now).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        said(&[theirs], "web.here.svc", now, "none of the CAs");
        said(&[], "web.here.svc", now, "no CA");
        said(&[ours], "127.0.0.2", now, "not good for");
        said(&[ours], "web.there.svc", now, "not good for");
        said(&[ours], "web.here.svc", now + DAY * 2, "has ended");
        said(&[ours], "web.here.svc", now - DAY, "not valid yet");
        said(&[ours], "", now, "no name");
    }

    #[test]
    fn takes_a_certificate_that_is_trusted_itself_as_go_does() {
        let now = SystemTime::now();
        let mut params = rcgen::CertificateParams::new(vec!["web.here.svc".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let root = Root::read(der.clone()).unwrap();
        verify(std::slice::from_ref(&der), &[&root], "web.here.svc", now).unwrap();
        let error = verify(&[der], &[&root], "web.there.svc", now).unwrap_err();
        assert_eq!(error, TrustError::Name("web.there.svc".to_owned()));
    }
}
