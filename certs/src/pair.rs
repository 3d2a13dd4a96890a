//! PEM text to a certificate and key that can be served, or the reason why not.
//!
//! [`Material`] is what a store holds; [`Pair::parse`] is the only way to a [`Pair`], so a pair that exists has
//! been checked: it parses, key and certificate belong together, and the leaf is valid at the given time.
//! The names in errors (`tls.crt`, `tls.key`, `ca.crt`) are those of a Kubernetes TLS Secret and of its files.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The text of a serving certificate, its key and its CA, all PEM. Not checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// `tls.crt`: the leaf, then intermediates if there are any.
    pub certificate: Vec<u8>,
    /// `tls.key`: PKCS#8, PKCS#1 (RSA) or SEC1 (EC).
    pub key: Vec<u8>,
    /// `ca.crt`: one or more CAs, or empty where the CA is kept elsewhere.
    pub authority: Vec<u8>,
}

impl fmt::Debug for Material {
    /// Sizes only: the key must not come into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("certificate_bytes", &self.certificate.len())
            .field("key_bytes", &self.key.len())
            .field("authority_bytes", &self.authority.len())
            .finish()
    }
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// Seconds until the end; negative once it has passed.
    #[must_use]
    pub fn seconds_left(&self, now: SystemTime) -> f64 {
        match self.not_after.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        }
    }

    /// Whether the moment lies within.
    #[must_use]
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// A certificate and key that belong together and were valid when they were read.
#[derive(Debug)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    leaf: Validity,
    names: Vec<String>,
    authorities: Vec<Validity>,
}

impl Pair {
    /// Reads and checks the text.
    ///
    /// # Errors
    /// The first thing that is wrong, with the name of the part that it is in.
    pub fn parse(material: &Material, now: SystemTime) -> Result<Self, PairError> {
        let chain = certificates("tls.crt", &material.certificate)?;
        let Some(first) = chain.first() else { return Err(PairError::Empty { part: "tls.crt" }) };
        let leaf = validity("tls.crt", first)?;
        let names = names(first);
        let key = PrivateKeyDer::from_pem_slice(&material.key).map_err(|source| match source {
            pem::Error::NoItemsFound => PairError::Empty { part: "tls.key" },
            source => PairError::Pem { part: "tls.key", source },
        })?;
        let authorities = certificates("ca.crt", &material.authority)?
            .iter()
            .map(|der| validity("ca.crt", der))
            .collect::<Result<_, _>>()?;
        let key =
            CertifiedKey::from_der(chain, key, &crate::crypto_provider()).map_err(|source| match source {
                rustls::Error::InconsistentKeys(_) => PairError::Mismatch,
                source => PairError::Key(source),
            })?;
        if now < leaf.not_before {
            return Err(PairError::NotYetValid { not_before: leaf.not_before });
        }
        if now > leaf.not_after {
            return Err(PairError::Expired { not_after: leaf.not_after });
        }
        Ok(Self { key: Arc::new(key), leaf, names, authorities })
    }

    /// What rustls serves.
    #[must_use]
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The serving certificate, then its intermediates.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The DNS names and IP addresses that the serving certificate is good for.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a client that asks for that host finds it among the names.
    #[must_use]
    pub fn is_good_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| {
            name.eq_ignore_ascii_case(host)
                // One label may be a wildcard (RFC 6125, 6.4.3).
                || name.strip_prefix("*.").is_some_and(|parent| {
                    host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent))
                })
        })
    }

    /// The name that clients of this pair would miss in the other. An API server asks for `service.namespace.svc`: one of
    /// those must stay; where there is none, any name.
    #[must_use]
    pub fn lost_by(&self, other: &Self) -> Option<String> {
        let services: Vec<&String> = self.names.iter().filter(|name| name.ends_with(".svc")).collect();
        let asked = if services.is_empty() { self.names.iter().collect() } else { services };
        let stays = asked.iter().any(|name| other.is_good_for(name))
            // One of ours that was a wildcard may be named in full now.
            || other.names.iter().any(|name| name.ends_with(".svc") && self.is_good_for(name));
        if stays { None } else { asked.first().map(|name| (*name).clone()) }
    }

    /// When the serving certificate is valid.
    #[must_use]
    pub fn leaf(&self) -> Validity {
        self.leaf
    }

    /// When each CA of `ca.crt` is valid, in the order of the file.
    #[must_use]
    pub fn authorities(&self) -> &[Validity] {
        &self.authorities
    }
}

/// Why a certificate and its key cannot be served.
#[derive(Debug)]
#[non_exhaustive]
pub enum PairError {
    /// There is nothing of the kind in the text.
    Empty {
        /// `tls.crt` or `tls.key`.
        part: &'static str,
    },
    /// The text is not PEM.
    Pem {
        /// `tls.crt`, `tls.key` or `ca.crt`.
        part: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// What the PEM text holds is not an X.509 certificate.
    Certificate {
        /// `tls.crt` or `ca.crt`.
        part: &'static str,
        /// Why, in the parser's words.
        cause: String,
    },
    /// The key's kind is not known, or the key is damaged.
    Key(rustls::Error),
    /// Key and certificate are of different pairs.
    Mismatch,
    /// The certificate lacks what clients ask for.
    Name {
        /// What they ask for.
        name: String,
    },
    /// The serving certificate begins in the future.
    NotYetValid {
        /// When it begins.
        not_before: SystemTime,
    },
    /// The serving certificate has ended.
    Expired {
        /// When it ended.
        not_after: SystemTime,
    },
}

impl fmt::Display for PairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty { part } => {
                let wanted = if *part == "tls.key" { "private key" } else { "certificate" };
                write!(f, "{part} holds no {wanted} in PEM form")
            }
            Self::Pem { part, .. } => write!(f, "{part} is not PEM text"),
            Self::Certificate { part, cause } => {
                write!(f, "{part} holds something that is not an X.509 certificate: {cause}")
            }
            Self::Key(_) => f.write_str("tls.key cannot be used: it must be an RSA, ECDSA or Ed25519 key"),
            Self::Mismatch => f.write_str("tls.key and tls.crt are not of the same pair"),
            Self::Name { name } => {
                write!(f, "tls.crt is not good for {name}, which is asked for until now")
            }
            Self::NotYetValid { not_before } => {
                write!(f, "tls.crt is not valid before {}", OffsetDateTime::from(*not_before))
            }
            Self::Expired { not_after } => {
                write!(f, "tls.crt ended at {}", OffsetDateTime::from(*not_after))
            }
        }
    }
}

impl std::error::Error for PairError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Pem { source, .. } => Some(source),
            Self::Key(source) => Some(source),
            _ => None,
        }
    }
}

fn certificates(part: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PairError> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|source| PairError::Pem { part, source })
}

/// Names that cannot be read are as if they were not there: no client will ask for them.
pub(crate) fn names(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                .ok()
                .map(|address| address.to_string())
        }
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

pub(crate) fn validity(part: &'static str, der: &CertificateDer<'_>) -> Result<Validity, PairError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|cause| PairError::Certificate { part, cause: cause.to_string() })?;
    let moment = |seconds: i64| match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    };
    let out_of_range = || PairError::Certificate { part, cause: "its dates are out of range".to_owned() };
    let dates = certificate.validity();
    Ok(Validity {
        not_before: moment(dates.not_before.timestamp()).ok_or_else(out_of_range)?,
        not_after: moment(dates.not_after.timestamp()).ok_or_else(out_of_range)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::{Lifetimes, ServingNames, issue};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000
    }

    fn material() -> Material {
        let names = ServingNames {
            service: "web".to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: Vec::new(),
            extra: Vec::new(),
        };
        issue(&names, Lifetimes::for_leaf(DAY), now()).unwrap()
    }

    #[test]
    fn rejects_a_key_of_another_pair() {
        let mixed = Material { key: material().key, ..material() };
        assert!(matches!(Pair::parse(&mixed, now()), Err(PairError::Mismatch)));
    }

    #[test]
    fn rejects_certificates_out_of_their_time() {
        let material = material();
        assert!(matches!(Pair::parse(&material, now() + DAY * 2), Err(PairError::Expired { .. })));
        assert!(matches!(Pair::parse(&material, now() - DAY), Err(PairError::NotYetValid { .. })));
        Pair::parse(&material, now() + DAY).unwrap();
    }

    #[test]
    fn rejects_garbage_and_names_the_part() {
        let good = material();
        let broken_pem = b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n".to_vec();
        let not_der = b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n".to_vec();
        let not_a_key = b"-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n".to_vec();
        let cases = [
            (Material { certificate: Vec::new(), ..good.clone() }, "tls.crt"),
            (Material { certificate: b"hello".to_vec(), ..good.clone() }, "tls.crt"),
            (Material { certificate: broken_pem.clone(), ..good.clone() }, "tls.crt"),
            (Material { certificate: not_der.clone(), ..good.clone() }, "tls.crt"),
            (Material { key: Vec::new(), ..good.clone() }, "tls.key"),
            (Material { key: not_a_key, ..good.clone() }, "tls.key"),
            (Material { authority: not_der, ..good.clone() }, "ca.crt"),
            (Material { authority: broken_pem, ..good.clone() }, "ca.crt"),
        ];
        for (material, part) in cases {
            let error = Pair::parse(&material, now()).unwrap_err();
            assert!(error.to_string().starts_with(part), "{error}");
        }
    }

    #[test]
    fn takes_a_bundle_with_comments_and_a_folder_without_authority() {
        let good = material();
        let mut bundle = b"# the old one\n".to_vec();
        bundle.extend(&good.authority);
        bundle.extend(b"\n# the new one\n");
        bundle.extend(material().authority);
        let pair = Pair::parse(&Material { authority: bundle, ..good.clone() }, now()).unwrap();
        assert_eq!(pair.authorities().len(), 2);
        let pair = Pair::parse(&Material { authority: Vec::new(), ..good }, now()).unwrap();
        assert!(pair.authorities().is_empty());
    }

    #[test]
    fn never_shows_the_key() {
        let material = material();
        assert!(!format!("{material:?}").contains("PRIVATE"));
    }
}
