//! The DNS resolver of a Kubernetes node.
//!
//! A query's way, and the file for each step:
//!
//! ```text
//!   listen/{udp,tcp,tls}  takes it in        sys      recvmmsg, sendmmsg: the one file with unsafe code
//!   answer            decides on the spot    tables   what a Corefile compiles to
//!   resolve           what must be asked     coalesce, local, forward/{udp,tcp,upstream,health}, loops
//!   chain             directives around the cache     asked, rewrite, search, acl, dns64, load_balance
//!   metrics, query_log, error_log, admin, admin_tls, web_config, self_check     what is seen from outside
//!   handover          to a newer process, and from an older one
//!   privileges, signals, control, service   rights, the end, what probes ask, word to systemd
//!   wish, node        address and rules      proof, obstacles, surroundings, cleanup, pods
//!   app               puts it together       args, sources, kube_dns, host_names, clock, framing, watchdog, holder, machine
//!   pem, server_tls, client_auth      certificates, in files and towards clients
//! ```
//!
//! Bytes are `nodestub-wire`'s, kept answers `nodestub-cache`'s, the Corefile's text `nodestub-corefile`'s, address and
//! rules `nodestub-dataplane`'s. This crate is a library for its own tests only.
#![deny(unsafe_code)]

pub mod acl;
pub mod admin;
pub mod admin_tls;
pub mod answer;
pub mod app;
pub mod args;
pub mod asked;
pub mod chain;
pub mod cleanup;
pub mod client_auth;
pub mod clock;
pub mod coalesce;
pub mod control;
pub mod dns64;
pub mod error_log;
pub mod forward;
pub mod framing;
pub mod handover;
pub mod holder;
pub mod host_names;
pub mod kube_dns;
pub mod listen;
pub mod load_balance;
pub mod local;
pub mod loops;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod obstacles;
pub mod pem;
pub mod pods;
pub mod privileges;
pub mod proof;
pub mod query_log;
pub mod resolve;
pub mod rewrite;
pub mod search;
pub mod self_check;
pub mod server_tls;
pub mod service;
pub mod signals;
pub mod sources;
pub mod surroundings;
pub mod sys;
pub mod tables;
pub mod watchdog;
pub mod web_config;
pub mod wish;
