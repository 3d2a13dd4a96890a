//! The webhook's certificates: made, kept, read, served and swapped.
//!
//! ```text
//! machine    what to do next, and when: pure
//! kept       what rotation keeps in one Secret; carries the machine's actions out
//! authority  a CA with its key: made, read again, signing
//! issue      names, lifetimes, and a CA with a leaf in one go
//! bundle     CAs without keys: what clients trust
//! trust      whether a client that trusts those takes a certificate
//! pair       PEM text -> a checked certificate and key; every refusal has a name
//! sight      what a process has seen the API server trust, and since when; which pair to serve, then
//! clock      the time of whoever verifies
//! resolver   what rustls asks at each handshake; the pair in it can be exchanged at any time
//! folder     a store of files: ca.crt, tls.crt, tls.key
//! watch      watches the folder, and exchanges the pair when a new good one lies there
//! ```
//!
//! Nothing here knows Kubernetes: a Secret is a map of bytes, names of Services come in as strings. Who asks the
//! machine, and writes what it says, is `webhook/src/certificates`.
#![forbid(unsafe_code)]

pub mod authority;
pub mod bundle;
pub mod clock;
pub mod folder;
pub mod issue;
pub mod kept;
pub mod machine;
pub mod pair;
pub mod resolver;
pub mod sight;
pub mod trust;
pub mod watch;

pub use authority::Authority;
pub use folder::{Folder, FolderError};
pub use issue::{IssueError, Lifetimes, ServingNames, issue};
pub use pair::{Material, Pair, PairError, Validity};
pub use resolver::{Outlook, Resolver};
pub use watch::{Outcome, Watch, Watcher};

use std::sync::Arc;

/// The one cryptography provider of Nodestub (aws-lc-rs), to be given to every rustls builder.
///
/// Named explicitly everywhere, so that nothing depends on which provider a process installed first.
#[must_use]
pub fn crypto_provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
