//! Certificates and keys in files, for whoever speaks TLS: the metrics port, clients and upstreams.

use std::path::{Path, PathBuf};

use nodestub_corefile::config::tls::KeyPair;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate, with those between it and its authority, and its key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why TLS cannot be spoken with what a Corefile names.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    File(PathBuf, String),
    /// There are no authorities to verify by.
    NoAuthorities(String),
    /// No certificate can be for such a name.
    Name(String),
    /// The library refuses what was read: a key of another certificate, say.
    Refused(rustls::Error),
}

/// All certificates of a file; at least one.
///
/// # Errors
/// In words, without the file: it cannot be read, or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err("no certificate in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// The first key of a file.
///
/// # Errors
/// In words, without the file: it cannot be read, or holds none.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| format!("no key in PEM: {error}"))
}

/// A certificate and its key. Whether they belong together shows when they are used.
///
/// # Errors
/// One of the files cannot be read, or does not hold it.
pub fn pair(files: &KeyPair) -> Result<Pair, TlsError> {
    let chain = certificates(&files.certificate)
        .map_err(|problem| TlsError::File(files.certificate.clone(), problem))?;
    let key = key(&files.key).map_err(|problem| TlsError::File(files.key.clone(), problem))?;
    Ok((chain, key))
}

/// Whom to believe: the certificates of a file, or those of the image or the machine, for which `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` name others, as for CoreDNS.
///
/// # Errors
/// There are none.
pub fn authorities(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    if let Some(file) = file {
        return certificates(file).map_err(|problem| TlsError::File(file.to_owned(), problem));
    }
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or_else(|| "no file has any".to_owned(), ToString::to_string);
        return Err(TlsError::NoAuthorities(why));
    }
    Ok(found.certs)
}

/// Authorities to verify by. Those that cannot be read are left out: a system's folder has one now and then.
///
/// # Errors
/// None is left.
pub fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(authorities.iter().cloned());
    if added == 0 {
        return Err(TlsError::NoAuthorities(format!("none of {ignored} certificates can be one")));
    }
    Ok(roots)
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
