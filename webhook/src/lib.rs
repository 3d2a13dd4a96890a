//! The admission webhook: new pods of namespaces that opted in are pointed at their node's resolver.
//!
//! An AdmissionReview's way, from top to bottom:
//!
//! ```text
//! listen      TCP, TLS with the current certificate, limits of time and number
//! server      HTTP: routes, body limit, answers in one line when it is not a review
//! admission   AdmissionReview -> our Request, Decision -> AdmissionReview; a fault leaves the pod as it is
//! admit       the decision: pure, total, a reason on every path
//! ```
//!
//! Beside it: [`args`] (flags to types), [`metrics`], and [`app`], the one file that knows every part.
//! Not here: a Kubernetes client. What is known of the cluster comes from flags ([`admit::Facts`]).
#![forbid(unsafe_code)]

pub mod admission;
pub mod admit;
pub mod app;
pub mod args;
pub mod listen;
pub mod metrics;
pub mod server;
