//! Why a Corefile that reads well cannot be served here, in words.

use std::net::SocketAddr;
use std::path::PathBuf;

use nodestub_wire::Name;

use super::workshop::MAX_UPSTREAMS;
use crate::admin_tls;
use crate::pem::TlsError;

/// Why a Corefile that reads well cannot be served.
#[derive(Debug)]
pub enum CompileError {
    /// `bind` names a device that does not exist or has no address.
    Device(String),
    /// `except` takes away all that `bind` names.
    NothingToBind,
    /// The machine's addresses cannot be listed.
    Addresses(std::io::Error),
    /// A file with upstreams cannot be read.
    ResolvConf(PathBuf, std::io::Error),
    /// An upstream's host name is not found: of which `forward`, which, and why.
    Host(Name, String, String),
    /// A `forward` has no upstream once its files are read.
    NoUpstream(Name),
    /// Upstreams over TLS cannot be asked.
    Tls(Name, TlsError),
    /// Metrics cannot be served by HTTPS.
    MetricsTls(admin_tls::TlsError),
    /// A `forward` has too many.
    TooManyUpstreams(Name, usize),
    /// Clients over TLS cannot be served.
    ServerTls(TlsError),
    /// Two blocks serve the same zone on the same address.
    Conflict(Name, SocketAddr),
    /// Two blocks serve an address in different manners: one in the clear, or with other certificates.
    Manners(SocketAddr),
}

impl std::fmt::Display for CompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(device) => write!(
                f,
                "bind: there is no network device {device:?}, or it has no address; name another one or an address"
            ),
            Self::NothingToBind => f.write_str(
                "bind: `except` leaves no address to listen on; take a device or an address out of it",
            ),
            Self::Addresses(cause) => write!(f, "bind: cannot list the machine's addresses: {cause}"),
            Self::ResolvConf(file, cause) => write!(f, "forward: cannot read {}: {cause}", file.display()),
            Self::Tls(from, error) => write!(f, "forward {from}: tls: {error}"),
            Self::MetricsTls(error) => write!(f, "prometheus: tls: {error}"),
            Self::Host(from, host, reason) => {
                write!(
                    f,
                    "forward {from}: cannot find the address of {host:?}: {reason}; name the server by its IP address"
                )
            }
            Self::ServerTls(error) => write!(f, "tls: {error}"),
            Self::NoUpstream(from) => {
                write!(f, "forward {from}: no nameserver is left once its files are read; name one")
            }
            Self::TooManyUpstreams(from, number) => {
                write!(f, "forward {from}: {number} upstreams; at most {MAX_UPSTREAMS} are allowed")
            }
            Self::Conflict(zone, listener) => {
                write!(f, "zone {zone} is served on {listener} by two server blocks; keep one")
            }
            Self::Manners(listener) => write!(
                f,
                "{listener} is served by two server blocks in different manners: give it one `tls`, or none"
            ),
        }
    }
}

impl std::error::Error for CompileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Addresses(cause) | Self::ResolvConf(_, cause) => Some(cause),
            Self::Tls(_, error) | Self::ServerTls(error) => Some(error),
            Self::MetricsTls(error) => Some(error),
            _ => None,
        }
    }
}
