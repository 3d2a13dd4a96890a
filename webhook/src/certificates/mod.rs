//! The webhook's own certificates in a cluster: who makes them, where they lie, and whom the API server trusts.
//!
//! ```text
//!   Secret ──watch──► keeper ──► Resolver (every replica serves what the Secret holds, once the API server trusts it)
//!   registration ──►  │  ▲
//!                     │  └── certs::machine::next: what to do, by whoever leads
//!                     └────► store (compare-and-set) · registration (server-side apply) · events · metrics
//!   Lease ──► lease: who leads, and, by the answers' dates, what time it is
//! ```
//!
//! | module | |
//! | --- | --- |
//! | [`args`] | the mode and its settings, from flags |
//! | `keeper` | the task that hears, serves and acts |
//! | `store` | the Secret |
//! | `registration` | the MutatingWebhookConfiguration |
//! | `lease` | leadership, and the API server's clock |
//! | `show` | `kubectl nodestub certs` |
//!
//! Serving needs no leadership and no API server: the last good pair stays. What is decided, and why it is safe whoever
//! does it, is in `certs/src/machine.rs`. A folder of files is watched by `certs` alone (`certs/src/watch.rs`).

pub mod args;
#[cfg(feature = "kube")]
pub mod keeper;
#[cfg(feature = "kube")]
mod lease;
#[cfg(feature = "kube")]
mod registration;
#[cfg(feature = "kube")]
pub mod show;
#[cfg(feature = "kube")]
mod store;

pub use args::{CertificateArgs, Mode, SecretSettings, Source};
