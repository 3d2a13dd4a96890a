//! The admission webhook: new pods of namespaces that opted in are pointed at their node's resolver.
//!
//! An AdmissionReview's way, from top to bottom:
//!
//! ```text
//! listen      TCP, TLS with the current certificate, limits of time and number
//! linger      the end of a connection, without a reset
//! server      HTTP: routes, body limit, answers in one line when it is not a review
//! admission   AdmissionReview -> our Request, Decision -> AdmissionReview; a fault leaves the pod as it is
//! admit       the decision: pure, total, a reason on every path
//! ```
//!
//! Beside it: [`facts`] (what is known of the cluster, and how), [`args`] (flags to types), [`metrics`], [`explain`]
//! (what `kubectl nodestub explain` says), [`policy`] (the same settings for clusters without a webhook), [`certificates`]
//! (our own, in a cluster), and [`app`], the one file of the webhook that knows every part.
//!
//! The Kubernetes client is there with the feature `kube`, which is on by default; without it facts come from flags.
#![forbid(unsafe_code)]

pub mod admission;
pub mod admit;
pub mod app;
pub mod args;
pub mod certificates;
pub mod explain;
pub mod facts;
pub mod linger;
pub mod listen;
pub mod metrics;
pub mod policy;
pub mod server;
