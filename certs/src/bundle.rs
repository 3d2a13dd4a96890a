//! CAs without their keys: what clients trust.
//!
//! A bundle is PEM text of people and tools: comments, CRLF, the same CA twice, and rubbish among it. What can be read
//! is taken, the rest is named.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::machine::{Certificate, Id, MAX_AUTHORITIES};
use crate::pair::{Validity, validity};

/// Certificates of one text that are looked at, at most. Larger bundles are of whole trust stores.
const MAX_READ: usize = 4 * MAX_AUTHORITIES;

/// The certificate of a CA.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// Tells it apart.
    pub id: Id,
    /// When it is valid.
    pub validity: Validity,
    /// Its subject's common name, for people.
    pub name: String,
    /// It may sign others.
    pub is_authority: bool,
    pub(crate) public_key: Vec<u8>,
    der: CertificateDer<'static>,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Root {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Why it is none, in the parser's words.
    pub fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let validity = validity("ca.crt", &der).map_err(|error| error.to_string())?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|cause| cause.to_string())?;
        let name = parsed.subject().iter_common_name().find_map(|name| name.as_str().ok());
        Ok(Self {
            id: id(&der),
            validity,
            name: name.map_or_else(|| parsed.subject().to_string(), str::to_owned),
            is_authority: parsed.is_ca(),
            public_key: parsed.public_key().raw.to_vec(),
            der,
        })
    }

    /// The certificate itself.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem(&self.der)
    }

    /// What the machine is told of it.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        Certificate::new(self.id, self.validity)
    }
}

/// Several CAs, each once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// Those that could be read, in their order.
    pub roots: Vec<Root>,
    /// What is wrong with the text, if anything is.
    pub problem: Option<String>,
}

impl Bundle {
    /// Reads PEM text.
    #[must_use]
    pub fn read(text: &[u8]) -> Self {
        let mut bundle = Self::default();
        let mut items = CertificateDer::pem_slice_iter(text);
        for item in items.by_ref().take(MAX_READ) {
            match item.map_err(|error| error.to_string()).and_then(Root::read) {
                Ok(root) if bundle.roots.contains(&root) => {}
                Ok(root) => bundle.roots.push(root),
                Err(problem) => bundle.problem = Some(problem),
            }
        }
        if items.next().is_some() {
            bundle.problem = Some(format!("more than {MAX_READ} certificates"));
        } else if bundle.roots.is_empty() && bundle.problem.is_none() && !text.trim_ascii().is_empty() {
            bundle.problem = Some("no certificate in PEM form".to_owned());
        }
        bundle
    }
}

/// PEM text of several.
#[must_use]
pub fn text<'a>(roots: impl IntoIterator<Item = &'a Root>) -> String {
    roots.into_iter().map(Root::to_pem).collect()
}

/// FNV-1a of the certificate: the same in every process and version. Whoever could make two of the same may as well
/// write the Secret itself.
pub(crate) fn id(der: &[u8]) -> Id {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    Id(der.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}

fn to_pem(der: &[u8]) -> String {
    let characters = STANDARD.encode(der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    // 48 bytes are 64 characters (RFC 7468, 2).
    let mut rest = characters.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::authority::Authority;

    fn root() -> Root {
        Authority::new(Duration::from_secs(3600), SystemTime::now()).unwrap().root().clone()
    }

    #[test]
    fn reads_what_it_wrote() {
        let roots = [root(), root(), root()];
        let read = Bundle::read(text(&roots).as_bytes());
        assert_eq!(read, Bundle { roots: roots.to_vec(), problem: None });
    }

    #[test]
    fn takes_comments_and_repeats_and_names_rubbish() {
        let root = root();
        let pem = root.to_pem();
        let good = Bundle::read(format!("# ours\r\n{pem}\n\n the same:\n{pem}").as_bytes());
        assert_eq!(good, Bundle { roots: vec![root.clone()], problem: None });
        let rubbish = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        let mixed = Bundle::read(format!("{rubbish}{pem}").as_bytes());
        assert!(mixed.problem.is_some() && mixed.roots == [root]);
        assert!(Bundle::read(b"hello").problem.is_some());
        assert_eq!(Bundle::read(b" \n"), Bundle::default());
    }
}
