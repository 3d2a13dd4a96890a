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
//! | [`nat`] | send packets for one address to another, as kube-proxy does |
//! | [`conntrack`] | force connection tracking on, read the table |
//! | [`dns`] | [`ask`], [`exchange`]: the client |
//! | [`upstream`] | [`Upstream`]: a scripted server, good or bad |
//! | [`daemon`] | [`Daemon`]: a real process with its output captured, killed on drop |
//! | [`skip`](mod@skip) | what could not run, and why |
//!
//! Nothing here touches the machine's own network namespace: devices are made inside new namespaces only, and the
//! kernel removes them with the last handle. Nothing is called that has to be installed.
//!
//! ```no_run
//! use std::net::IpAddr;
//! use nodestub_lab::{Netns, Options, Pod, Upstream, ask, conntrack, upstream};
//!
//! # fn main() -> Result<(), nodestub_lab::Error> {
//! let (node_ip, pod_ip) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
//! let (node, net) = (Netns::new()?, Netns::new()?);
//! node.join("pod0", &net, "eth0")?;
//! node.add_address("pod0", node_ip, 24)?;
//! net.add_address("eth0", pod_ip, 24)?;
//! net.add_route(IpAddr::from([0, 0, 0, 0]), 0, node_ip)?;
//! conntrack::force_tracking(&node)?;
//!
//! // A server in the node, a client in the pod.
//! let names = [("a.test.", IpAddr::from([192, 0, 2, 1]))];
//! let server = node.run(|| Upstream::start((node_ip, 53).into(), upstream::zone(30, &names)))??;
//! let answer = net.run(|| ask(server.address(), "a.test", "A", &Options::default()))??;
//! assert_eq!(answer.data(), ["192.0.2.1"]);
//! assert_eq!(conntrack::count(&node, 53)?.udp, 1);
//!
//! // The system's own resolver library, as in a pod.
//! let pod = Pod::new(&net, &format!("nameserver {node_ip}\nsearch test\n"))?;
//! let mut getent = std::process::Command::new("getent");
//! getent.args(["ahostsv4", "a"]);
//! assert!(pod.output(getent)?.status.success());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod daemon;
pub mod dns;
mod error;
pub mod isolate;
pub mod nat;
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

/// Response codes, for [`upstream::denial`] and [`upstream::refusal`].
pub use domain::base::iana::Rcode;
/// Signals, for [`Daemon::signal`].
pub use rustix::process::Signal;
