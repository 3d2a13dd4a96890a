//! A CA with its key: made, read again, and signing.
//!
//! Rules for what it signs are in [`mod@crate::issue`].

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, pem};
use time::OffsetDateTime;

use crate::bundle::{Root, id};
use crate::issue::{IssueError, ServingNames, new_key, validity};
use crate::pair::{Material, Validity};

/// A CA with its key.
pub struct Authority {
    root: Root,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a CA with a new key.
    ///
    /// # Errors
    /// When the lifetime does not fit into a certificate, or key or signature fail.
    pub fn new(lifetime: Duration, now: SystemTime) -> Result<Self, IssueError> {
        let (not_before, not_after) = validity(lifetime, now)?;
        let key = new_key()?;
        let mut params = CertificateParams::default();
        // People tell CAs apart by the moment, clients by the key: two CAs of one name make them try the wrong one.
        let moment = not_before.unix_timestamp();
        let name = format!("nodestub CA {moment} {:08x}", id(key.public_key_raw()).0 >> 32);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = not_before;
        params.not_after = not_after;
        let certificate =
            params.self_signed(&key).map_err(|source| IssueError::Sign { certificate: "the CA", source })?;
        let root = Root::read(certificate.der().clone()).map_err(AuthorityError::Certificate);
        let root = root.map_err(|source| IssueError::Authority(Box::new(source)))?;
        Ok(Self { root, issuer: Issuer::new(params, key) })
    }

    /// Reads a CA and its key as they were kept.
    ///
    /// # Errors
    /// When either is not PEM or not what it should be, they are not of the same pair, or it is no CA.
    pub fn read(certificate: &[u8], key: &[u8]) -> Result<Self, AuthorityError> {
        let der = CertificateDer::from_pem_slice(certificate).map_err(AuthorityError::CertificatePem)?;
        let root = Root::read(der.clone()).map_err(AuthorityError::Certificate)?;
        if !root.is_authority {
            return Err(AuthorityError::NotAnAuthority);
        }
        let key =
            std::str::from_utf8(key).map_err(|_| AuthorityError::Key(rcgen::Error::CouldNotParseKeyPair))?;
        let key = KeyPair::from_pem(key).map_err(AuthorityError::Key)?;
        if key.subject_public_key_info() != root.public_key {
            return Err(AuthorityError::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(AuthorityError::Issuer)?;
        Ok(Self { root, issuer })
    }

    /// Its certificate.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The CA's certificate as PEM: what goes into a `caBundle`.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.root.to_pem()
    }

    /// The CA's key as PEM (PKCS#8). Whoever has it can pretend to be the webhook.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a serving certificate with a new key. Its validity is cut to the CA's.
    ///
    /// # Errors
    /// When a name is not one, the lifetime does not fit, or key or signature fail.
    pub fn sign(
        &self,
        names: &ServingNames,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Material, IssueError> {
        let (not_before, not_after) = validity(lifetime, now)?;
        let mut params = CertificateParams::new(names.dns_names()?).map_err(IssueError::Names)?;
        params.subject_alt_names.extend(names.addresses.iter().copied().map(SanType::IpAddress));
        // Fixed, for a Service's full name may be longer than the 64 bytes of a common name; clients read the SANs.
        params.distinguished_name.push(DnType::CommonName, "nodestub-webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let Validity { not_before: from, not_after: until } = self.root.validity;
        params.not_before = not_before.max(from.into());
        params.not_after = not_after.min(until.into());
        // A leaf begins in the past: what counts is whether it lives from now on.
        if params.not_after <= OffsetDateTime::from(now) {
            return Err(IssueError::AuthorityExpired { not_after: until.into() });
        }
        let key = new_key()?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(|source| IssueError::Sign { certificate: "the serving certificate", source })?;
        Ok(Material {
            certificate: certificate.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
            authority: self.certificate_pem().into_bytes(),
        })
    }
}

/// Why what was kept is no CA that can sign.
#[derive(Debug)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The certificate is not PEM text.
    CertificatePem(pem::Error),
    /// What the text holds is no certificate; why, in the parser's words.
    Certificate(String),
    /// The certificate may not sign others.
    NotAnAuthority,
    /// The key cannot be read.
    Key(rcgen::Error),
    /// Key and certificate are of different pairs.
    Mismatch,
    /// The certificate cannot be used to sign.
    Issuer(rcgen::Error),
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CertificatePem(_) => f.write_str("the CA's certificate is not PEM text"),
            Self::Certificate(cause) => write!(f, "the CA's certificate cannot be read: {cause}"),
            Self::NotAnAuthority => f.write_str("the certificate is not one of a CA"),
            Self::Key(_) => f.write_str("the CA's key cannot be read"),
            Self::Mismatch => f.write_str("the CA's key and certificate are not of the same pair"),
            Self::Issuer(_) => f.write_str("the CA's certificate cannot be used to sign"),
        }
    }
}

impl std::error::Error for AuthorityError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::CertificatePem(source) => Some(source),
            Self::Key(source) | Self::Issuer(source) => Some(source),
            Self::Certificate(_) | Self::NotAnAuthority | Self::Mismatch => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn signs_as_before_after_it_was_read_again() {
        let now = SystemTime::now();
        let made = Authority::new(DAY, now).unwrap();
        let read = Authority::read(made.certificate_pem().as_bytes(), made.key_pem().as_bytes()).unwrap();
        assert_eq!(read.root().id, made.root().id);
        let names = ServingNames {
            service: "web".to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: Vec::new(),
            extra: Vec::new(),
        };
        let leaf = read.sign(&names, DAY, now).unwrap();
        let pair = crate::pair::Pair::parse(&leaf, now).unwrap();
        crate::trust::verify(pair.chain(), &[made.root()], "web.here.svc", now).unwrap();
    }

    #[test]
    fn rejects_what_cannot_sign() {
        let now = SystemTime::now();
        let (one, two) = (Authority::new(DAY, now).unwrap(), Authority::new(DAY, now).unwrap());
        let (certificate, key) = (one.certificate_pem(), one.key_pem());
        let read = |certificate: &str, key: &str| Authority::read(certificate.as_bytes(), key.as_bytes());
        read(&certificate, &key).unwrap();
        assert!(matches!(read(&certificate, &two.key_pem()), Err(AuthorityError::Mismatch)));
        assert!(matches!(read("", &key), Err(AuthorityError::CertificatePem(_))));
        assert!(matches!(read(&certificate, ""), Err(AuthorityError::Key(_))));
        let names = ServingNames {
            service: "web".to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: Vec::new(),
            extra: Vec::new(),
        };
        let leaf = one.sign(&names, DAY, now).unwrap();
        let leaf = Authority::read(&leaf.certificate, &leaf.key);
        assert!(matches!(leaf, Err(AuthorityError::NotAnAuthority)), "{leaf:?}");
    }
}
