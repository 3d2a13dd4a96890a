//! Names, lifetimes, and a CA with a serving certificate in one go.
//!
//! [`issue`] gives the [`Material`] that a store keeps; [`Authority`] is there for whoever signs several leaves
//! with one CA. Everything is a function of its arguments, the time included; only the keys are random.
//!
//! What always holds:
//! 1. Keys are ECDSA P-256: every TLS client of Kubernetes takes them, and they are made in microseconds.
//! 2. NotBefore lies [`BACKDATE`] in the past, so that a clock that is behind does not refuse a new certificate.
//! 3. A leaf's validity lies within its CA's.
//! 4. A CA signs leaves only (path length 0).

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use time::OffsetDateTime;

use crate::authority::{Authority, AuthorityError};
use crate::pair::{Material, PairError};

/// How far back NotBefore lies: clocks of a cluster's nodes are allowed to differ by this much.
pub const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// A CA lives this many times longer than a leaf, so that the caBundle changes seldom.
pub const AUTHORITY_LIFETIME_FACTOR: u32 = 10;

/// The longest DNS name, in bytes (RFC 1035, 2.3.4, without the final dot).
const MAX_NAME_BYTES: usize = 253;
/// The longest label, in bytes (RFC 1035, 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// What a serving certificate is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServingNames {
    /// The Service that the API server calls, such as `nodestub-webhook`.
    pub service: String,
    /// The namespace of that Service.
    pub namespace: String,
    /// Adds `service.namespace.svc.<cluster domain>`.
    pub cluster_domain: Option<String>,
    /// Adds IP SANs: for a webhook that is registered by URL, and for tests.
    pub addresses: Vec<IpAddr>,
    /// Adds further DNS names.
    pub extra: Vec<String>,
}

impl ServingNames {
    /// The DNS names, the one that the API server asks for (`service.namespace.svc`) first, each once.
    ///
    /// # Errors
    /// When one of them is not a DNS name (RFC 1123).
    pub fn dns_names(&self) -> Result<Vec<String>, IssueError> {
        check_label("service", &self.service)?;
        check_label("namespace", &self.namespace)?;
        let short = format!("{}.{}", self.service, self.namespace);
        let mut names = vec![format!("{short}.svc")];
        if let Some(domain) = &self.cluster_domain {
            names.push(format!("{short}.svc.{}", domain.trim_end_matches('.')));
        }
        names.push(short);
        for extra in &self.extra {
            let extra = extra.trim_end_matches('.').to_owned();
            if !names.contains(&extra) {
                names.push(extra);
            }
        }
        for name in &names {
            check_name("DNS name", name)?;
        }
        Ok(names)
    }
}

/// How long certificates are valid, counted from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// The CA's.
    pub authority: Duration,
    /// The serving certificate's; cut to the CA's where it is longer.
    pub leaf: Duration,
}

impl Lifetimes {
    /// A leaf of that length, and a CA that lives [`AUTHORITY_LIFETIME_FACTOR`] times longer.
    #[must_use]
    pub fn for_leaf(leaf: Duration) -> Self {
        Self { authority: leaf.saturating_mul(AUTHORITY_LIFETIME_FACTOR), leaf }
    }
}

/// Makes a new CA and one serving certificate. The CA's key is thrown away with the call's end.
///
/// # Errors
/// When a name is not one, a lifetime does not fit into a certificate, or key or signature fail.
pub fn issue(names: &ServingNames, lifetimes: Lifetimes, now: SystemTime) -> Result<Material, IssueError> {
    Authority::new(lifetimes.authority, now)?.sign(names, lifetimes.leaf, now)
}

/// Why no certificate was made.
#[derive(Debug)]
#[non_exhaustive]
pub enum IssueError {
    /// A name that was asked for is not a DNS name.
    Name {
        /// What the name stands for.
        what: &'static str,
        /// The name as it was given.
        value: String,
    },
    /// The names cannot be written into a certificate.
    Names(rcgen::Error),
    /// The lifetime is nothing, or ends past the year 9999.
    Lifetime(Duration),
    /// The CA ends before the leaf would begin.
    AuthorityExpired {
        /// The CA's end.
        not_after: OffsetDateTime,
    },
    /// The CA that was made cannot be read.
    Authority(Box<AuthorityError>),
    /// The leaf that was made cannot be read.
    Leaf(Box<PairError>),
    /// No key could be made.
    Key(rcgen::Error),
    /// The signature failed.
    Sign {
        /// Whose.
        certificate: &'static str,
        /// Why.
        source: rcgen::Error,
    },
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { what, value } => write!(
                f,
                "the {what} {value:?} is not a DNS name: use lower-case letters, digits and hyphens, and dots between labels"
            ),
            Self::Names(_) => f.write_str("the names cannot be written into a certificate"),
            Self::Lifetime(lifetime) => write!(
                f,
                "a lifetime of {} seconds does not fit into a certificate: give more than nothing, ending before the year 9999",
                lifetime.as_secs()
            ),
            Self::AuthorityExpired { not_after } => {
                write!(f, "the CA ended at {not_after}: make a new one first")
            }
            Self::Authority(_) => f.write_str("the CA that was made cannot be read"),
            Self::Leaf(_) => f.write_str("the certificate that was made cannot be read"),
            Self::Key(_) => f.write_str("making a key failed"),
            Self::Sign { certificate, .. } => write!(f, "signing {certificate} failed"),
        }
    }
}

impl std::error::Error for IssueError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Names(source) | Self::Key(source) | Self::Sign { source, .. } => Some(source),
            Self::Authority(source) => Some(source.as_ref()),
            Self::Leaf(source) => Some(source.as_ref()),
            Self::Name { .. } | Self::Lifetime(_) | Self::AuthorityExpired { .. } => None,
        }
    }
}

pub(crate) fn new_key() -> Result<KeyPair, IssueError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Key)
}

pub(crate) fn validity(
    lifetime: Duration,
    now: SystemTime,
) -> Result<(OffsetDateTime, OffsetDateTime), IssueError> {
    let bad = || IssueError::Lifetime(lifetime);
    if lifetime.is_zero() {
        return Err(bad());
    }
    let now = OffsetDateTime::from(now);
    let not_before = now.checked_sub(BACKDATE.try_into().map_err(|_| bad())?).ok_or_else(bad)?;
    let not_after = now.checked_add(lifetime.try_into().map_err(|_| bad())?).ok_or_else(bad)?;
    Ok((not_before, not_after))
}

fn check_label(what: &'static str, value: &str) -> Result<(), IssueError> {
    if is_label(value) { Ok(()) } else { Err(IssueError::Name { what, value: value.to_owned() }) }
}

fn check_name(what: &'static str, value: &str) -> Result<(), IssueError> {
    if value.len() <= MAX_NAME_BYTES && value.split('.').all(is_label) {
        Ok(())
    } else {
        Err(IssueError::Name { what, value: value.to_owned() })
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= MAX_LABEL_BYTES
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::Pair;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn names() -> ServingNames {
        ServingNames {
            service: "nodestub-webhook".to_owned(),
            namespace: "nodestub-system".to_owned(),
            cluster_domain: Some("cluster.local.".to_owned()),
            addresses: Vec::new(),
            extra: vec!["localhost".to_owned(), "nodestub-webhook.nodestub-system".to_owned()],
        }
    }

    #[test]
    fn names_the_service_in_every_form_once() {
        let expected = [
            "nodestub-webhook.nodestub-system.svc",
            "nodestub-webhook.nodestub-system.svc.cluster.local",
            "nodestub-webhook.nodestub-system",
            "localhost",
        ];
        assert_eq!(names().dns_names().unwrap(), expected);
    }

    #[test]
    fn rejects_names_that_are_not_dns_names() {
        for bad in ["", "Web", "a.b", "-a", "a-", "a_b", &"a".repeat(64)] {
            let error = ServingNames { service: bad.to_owned(), ..names() }.dns_names().unwrap_err();
            assert!(error.to_string().starts_with("the service"), "{bad:?}: {error}");
        }
        for bad in ["a..b", "*.example.org", "a b"] {
            ServingNames { extra: vec![bad.to_owned()], ..names() }.dns_names().unwrap_err();
        }
    }

    #[test]
    fn starts_an_hour_back_and_ends_when_asked() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let material = issue(&names(), Lifetimes::for_leaf(DAY), now).unwrap();
        let pair = Pair::parse(&material, now).unwrap();
        assert_eq!(pair.leaf().not_before, now - BACKDATE);
        assert_eq!(pair.leaf().not_after, now + DAY);
        assert_eq!(pair.authorities().len(), 1);
        assert_eq!(pair.authorities()[0].not_after, now + DAY * AUTHORITY_LIFETIME_FACTOR);
    }

    #[test]
    fn never_signs_a_leaf_that_outlives_its_authority() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let authority = Authority::new(DAY, now).unwrap();
        let material = authority.sign(&names(), DAY * 30, now).unwrap();
        assert_eq!(Pair::parse(&material, now).unwrap().leaf().not_after, now + DAY);
        let late = authority.sign(&names(), DAY, now + DAY * 2).unwrap_err();
        assert!(matches!(late, IssueError::AuthorityExpired { .. }), "{late}");
    }

    #[test]
    fn rejects_lifetimes_that_do_not_fit() {
        for lifetime in [Duration::ZERO, DAY * 365 * 9000, Duration::MAX] {
            let error = Authority::new(lifetime, SystemTime::now()).unwrap_err();
            assert!(matches!(error, IssueError::Lifetime(_)), "{error}");
        }
    }
}
