//! A laboratory: network namespaces, an independent DNS client, and servers that misbehave on demand.
//!
//! Tests and the demo build on this crate. Its one rule: **it depends on none of our crates**, so that whatever it
//! says about DNS or about the kernel shares no code with what is being tested. The DNS side stands on the crate
//! `domain`, the kernel side on netlink.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`netns`] | [`Netns`]: a network namespace, closures and processes inside it, veth pairs, addresses, routes |
//! | [`pod`] | [`Pod`]: a mount namespace with its own `/etc/resolv.conf`, so that the system's resolver library runs as in a pod |
//! | [`isolate`](mod@isolate) | [`rights`], [`isolate()`]: run the whole program in namespaces of its own, with or without root |
//! | [`conntrack`] | force connection tracking on, read the table |
//! | [`dns`] | [`ask`], [`exchange`]: the client |
//! | [`upstream`] | [`Upstream`]: a scripted server, good or bad |
//! | [`daemon`] | [`Daemon`]: a real process with its output captured, killed on drop |
//! | [`skip`](mod@skip) | what could not run, and why |
//!
//! Nothing here touches the machine's own network namespace: devices are made inside new namespaces only, and the
//! kernel removes them with the last handle. Nothing is called that has to be installed.
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod daemon;
pub mod dns;
mod error;
pub mod isolate;
mod netfilter;
pub mod netns;
pub mod pod;
pub mod skip;
pub mod upstream;

pub use daemon::Daemon;
pub use dns::{Answer, Options, Record, ask, exchange};
pub use error::Error;
pub use isolate::{Isolation, Rights, isolate, rights};
pub use netns::Netns;
pub use pod::Pod;
pub use skip::skip;
pub use upstream::{Reply, Transport, Upstream};
