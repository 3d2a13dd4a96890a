//! The webhook's certificates: made, kept, read, served and swapped.
//!
//! ```text
//! issue   a CA and a serving certificate, from names, lifetimes and the time
//! pair    PEM text -> a checked certificate and key; every refusal has a name
//! folder  the store: ca.crt, tls.crt, tls.key
//! resolver  what rustls asks at each handshake; the pair in it can be exchanged at any time
//! watch   looks at the folder again and again, and exchanges the pair when a new good one lies there
//! ```
//!
//! Data passes from top to bottom. Nothing here knows Kubernetes: names of Services come in as strings.
//! Not here: when to renew, and the bundle of an old and a new CA.
#![forbid(unsafe_code)]

pub mod folder;
pub mod issue;
pub mod pair;
pub mod resolver;
pub mod watch;

pub use folder::{Folder, FolderError};
pub use issue::{Authority, IssueError, Lifetimes, ServingNames, issue};
pub use pair::{Material, Pair, PairError, Validity};
pub use resolver::Resolver;
pub use watch::{Outcome, Watch, Watcher};

use std::sync::Arc;

/// The one cryptography provider of Nodestub (aws-lc-rs), to be given to every rustls builder.
///
/// Named explicitly everywhere, so that nothing depends on which provider a process installed first.
#[must_use]
pub fn crypto_provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
