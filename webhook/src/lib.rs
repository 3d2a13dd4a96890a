//! The admission webhook: new pods of namespaces that opted in are pointed at their node's resolver.
#![forbid(unsafe_code)]

pub mod admit;
