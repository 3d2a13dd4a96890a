//! What the node should look like, as plain values. No kernel here.
//!
//! [`Desired`] is checked when it is made; [`Desired::ruleset`] computes the rules (see [`rules`]).
//!
//! What becomes of a query while nobody listens is [`FailOpen`], for each address its own:
//!
//! | made by | without a listener, a pod's query | the host's own query |
//! | --- | --- | --- |
//! | [`Desired::with_fallback`] | goes on to the target, and its answer comes from the address that was asked | is refused |
//! | [`Desired::intercept`] | is left to kube-proxy, as if we were not there | is kube-proxy's always |
//! | neither | is refused | is refused |

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::rules::{self, Ruleset};

/// The device that carries the addresses, unless the operator says otherwise.
pub const DEFAULT_DEVICE: &str = "nodestub";
/// Our nftables table, in family `inet`.
pub const TABLE: &str = "nodestub";
/// The end of a pair of devices by which our own questions leave that try fail-open: see [`crate::proof`].
pub const ASK_DEVICE: &str = "nodestub-ask";
/// The end by which they come in, as a pod's do.
pub const HEAR_DEVICE: &str = "nodestub-hear";
/// The most addresses: far more than two families and some ClusterIPs need, few enough for one datagram of rules.
pub const MAX_ADDRESSES: usize = 16;
/// Linux's `IFNAMSIZ` less the final zero.
const MAX_DEVICE_NAME_OCTETS: usize = 15;

/// The desired state of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    addresses: Vec<IpAddr>,
    device: String,
    dns_port: NonZeroU16,
    health_port: Option<NonZeroU16>,
    /// Local address and where its queries go while nobody listens.
    targets: Vec<(IpAddr, IpAddr)>,
    /// Those of the addresses that kube-proxy serves as well.
    services: Vec<IpAddr>,
    switched_off: bool,
}

impl Desired {
    /// Checks and keeps the wishes. Addresses named twice count once.
    ///
    /// `health_port` is the port of the HTTP health check on the addresses; `None` makes no rules for it.
    pub fn new(
        addresses: &[IpAddr],
        device: &str,
        dns_port: NonZeroU16,
        health_port: Option<NonZeroU16>,
    ) -> Result<Self, Error> {
        let addresses = unique(addresses)?;
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if device.is_empty()
            || device.len() > MAX_DEVICE_NAME_OCTETS
            || matches!(device, "." | "..")
            || !device.bytes().all(plain)
        {
            return Err(Error::Device(device.to_owned()));
        }
        if health_port == Some(dns_port) {
            return Err(Error::SamePort(dns_port));
        }
        Ok(Self {
            addresses,
            device: device.to_owned(),
            dns_port,
            health_port,
            targets: Vec::new(),
            services: Vec::new(),
            switched_off: false,
        })
    }

    /// While nobody listens on `address`, its queries go to `target`, of the same family: the ClusterIP of kube-dns,
    /// or any address that answers DNS. A second call for the same address replaces the first.
    ///
    /// The target may be an address of [`Desired::intercept`] (called before), never another local address.
    pub fn with_fallback(mut self, address: IpAddr, target: IpAddr) -> Result<Self, Error> {
        if !self.addresses.contains(&address) {
            return Err(Error::NotLocal(address));
        }
        if !is_reachable(target) {
            return Err(Error::Target(target));
        }
        if target.is_ipv4() != address.is_ipv4() {
            return Err(Error::TargetFamily { address, target });
        }
        if target == address || (self.addresses.contains(&target) && !self.services.contains(&target)) {
            return Err(Error::TargetIsLocal(target));
        }
        self.targets.retain(|(local, _)| *local != address);
        self.targets.push((address, target));
        Ok(self)
    }

    /// Binds these service addresses (ClusterIPs) as well. While nobody listens on one, its packets are left to
    /// kube-proxy. Queries of the host's own processes to them are always kube-proxy's.
    ///
    /// Addresses that are among the local ones already become service addresses.
    pub fn intercept(mut self, services: &[IpAddr]) -> Result<Self, Error> {
        let all: Vec<IpAddr> = self.addresses.iter().chain(services).copied().collect();
        self.addresses = unique(&all)?;
        for service in services {
            if !self.services.contains(service) {
                self.services.push(*service);
            }
        }
        Ok(self)
    }

    /// The same without one address, which is somebody else's on this node. `None` where it was the only one.
    #[must_use]
    pub fn without(&self, address: IpAddr) -> Option<Self> {
        let mut rest = self.clone();
        rest.addresses.retain(|other| *other != address);
        rest.services.retain(|other| *other != address);
        rest.targets.retain(|(local, _)| *local != address);
        (!rest.addresses.is_empty()).then_some(rest)
    }

    /// The same with fail-open off everywhere: for a kernel that lacks what it needs.
    pub fn without_fail_open(mut self) -> Self {
        self.switched_off = true;
        self
    }

    /// The addresses, each once, in the order they were given, service addresses included.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The port of DNS.
    pub fn dns_port(&self) -> NonZeroU16 {
        self.dns_port
    }

    /// The port of the health check; `None` makes no rules for it.
    pub fn health_port(&self) -> Option<NonZeroU16> {
        self.health_port
    }

    /// Whether kube-proxy serves the address as well.
    pub fn is_service(&self, address: IpAddr) -> bool {
        self.services.contains(&address)
    }

    /// What becomes of queries while nobody listens, address by address.
    pub fn fail_open(&self) -> impl Iterator<Item = (IpAddr, FailOpen)> {
        self.addresses.iter().map(|address| (*address, self.fail_open_of(*address)))
    }

    /// The rules that follow.
    pub fn ruleset(&self) -> Ruleset {
        rules::ruleset(self)
    }

    fn fail_open_of(&self, address: IpAddr) -> FailOpen {
        if self.switched_off {
            return FailOpen::Off(OffReason::SwitchedOff);
        }
        match self.targets.iter().find(|(local, _)| *local == address) {
            Some((_, target)) => FailOpen::To(*target),
            None if self.services.contains(&address) => FailOpen::KubeProxy,
            None if self.targets.is_empty() => FailOpen::Off(OffReason::NoTarget),
            None if self.targets.iter().all(|(local, _)| local.is_ipv4() != address.is_ipv4()) => {
                FailOpen::Off(OffReason::NoTargetOfFamily)
            }
            None => FailOpen::Off(OffReason::NoTarget),
        }
    }
}

/// What becomes of a pod's query to an address while nobody listens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailOpen {
    /// The kernel sends it to this address, and its answer back from the one that was asked.
    To(IpAddr),
    /// The kernel leaves it to kube-proxy, which serves the address as well.
    KubeProxy,
    /// It is refused.
    Off(OffReason),
}

impl fmt::Display for FailOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(target) => write!(f, "to {target}"),
            Self::KubeProxy => write!(f, "to kube-proxy"),
            Self::Off(reason) => write!(f, "off: {reason}"),
        }
    }
}

/// Why the kernel's fail-open is off for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffReason {
    /// No fallback target was given for it.
    NoTarget,
    /// Fallback targets were given for the other address family only.
    NoTargetOfFamily,
    /// [`Desired::without_fail_open`].
    SwitchedOff,
}

impl fmt::Display for OffReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTarget => "no fallback target was given",
            Self::NoTargetOfFamily => "fallback targets were given for the other address family only",
            Self::SwitchedOff => "switched off",
        })
    }
}

/// A wish that cannot be met on any node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// None, or more than [`MAX_ADDRESSES`].
    AddressCount(usize),
    /// Loopback, unspecified, multicast or IPv4-mapped: nothing that a pod could send a query to.
    Address(IpAddr),
    /// Not a name that Linux gives a device.
    Device(String),
    /// DNS and the health check on one port.
    SamePort(NonZeroU16),
    /// A fallback was given for an address that is not among the local ones.
    NotLocal(IpAddr),
    /// Loopback, unspecified, multicast or IPv4-mapped: nowhere to send a pod's query.
    Target(IpAddr),
    /// A fallback target of the other family.
    TargetFamily {
        /// The local address.
        address: IpAddr,
        /// Its target.
        target: IpAddr,
    },
    /// A fallback target that is a local address itself: without a listener there, nobody would answer.
    TargetIsLocal(IpAddr),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressCount(count) => {
                write!(f, "{count} local addresses: give between 1 and {MAX_ADDRESSES}")
            }
            Self::Address(address) => write!(
                f,
                "{address} cannot be a local address: pods cannot reach it; use a link-local or private one such as 169.254.20.10"
            ),
            Self::Device(name) => write!(
                f,
                "{name:?} cannot be a device's name: use 1 to {MAX_DEVICE_NAME_OCTETS} letters, digits, '-', '_' or '.'"
            ),
            Self::SamePort(port) => write!(f, "port {port} is given for both DNS and the health check"),
            Self::NotLocal(address) => {
                write!(
                    f,
                    "a fallback is given for {address}, which is no local address: add it, or drop the fallback"
                )
            }
            Self::Target(target) => write!(
                f,
                "{target} cannot be a fallback: pods cannot reach it; use the ClusterIP of kube-dns"
            ),
            Self::TargetFamily { address, target } => {
                write!(f, "{target} cannot be the fallback of {address}: one is IPv4 and the other IPv6")
            }
            Self::TargetIsLocal(target) => write!(
                f,
                "{target} cannot be a fallback: it is a local address itself; use the ClusterIP of kube-dns"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Each address once, in order; all of them such as pods can reach.
fn unique(addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let mut unique: Vec<IpAddr> = Vec::with_capacity(addresses.len().min(MAX_ADDRESSES));
    for address in addresses {
        if !is_reachable(*address) {
            return Err(Error::Address(*address));
        }
        if !unique.contains(address) {
            unique.push(*address);
        }
    }
    if unique.is_empty() || unique.len() > MAX_ADDRESSES {
        return Err(Error::AddressCount(unique.len()));
    }
    Ok(unique)
}

fn is_reachable(address: IpAddr) -> bool {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DNS: NonZeroU16 = NonZeroU16::new(53).unwrap();
    const HEALTH: NonZeroU16 = NonZeroU16::new(8080).unwrap();

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn desired(addresses: &[&str]) -> Result<Desired, Error> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Desired::new(&addresses, DEFAULT_DEVICE, DNS, Some(HEALTH))
    }

    #[test]
    fn rejects_addresses_that_no_pod_can_reach() {
        for text in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "::ffff:10.0.0.1"] {
            assert_eq!(desired(&[text]), Err(Error::Address(text.parse().unwrap())), "{text}");
        }
    }

    #[test]
    fn rejects_no_address_and_too_many() {
        assert_eq!(desired(&[]), Err(Error::AddressCount(0)));
        let many: Vec<String> = (0..=MAX_ADDRESSES).map(|n| format!("169.254.20.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(desired(&many), Err(Error::AddressCount(MAX_ADDRESSES + 1)));
    }

    #[test]
    fn rejects_names_that_linux_gives_no_device() {
        let address = ["169.254.20.10".parse().unwrap()];
        for name in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-letters-", "\u{e9}th0"] {
            assert_eq!(Desired::new(&address, name, DNS, None), Err(Error::Device(name.to_owned())));
        }
    }

    #[test]
    fn rejects_one_port_for_dns_and_health() {
        let address = ["169.254.20.10".parse().unwrap()];
        assert_eq!(Desired::new(&address, DEFAULT_DEVICE, DNS, Some(DNS)), Err(Error::SamePort(DNS)));
    }

    #[test]
    fn says_for_each_address_what_becomes_of_a_query_without_a_listener() {
        let wish = desired(&["169.254.20.10", "169.254.20.11", "fd00::a"]).unwrap();
        let off = |reason| FailOpen::Off(reason);
        let modes = |wish: &Desired| wish.fail_open().map(|(_, mode)| mode).collect::<Vec<_>>();
        assert_eq!(modes(&wish), [off(OffReason::NoTarget); 3]);
        let target = ip("10.96.0.10");
        let wish = wish.with_fallback(ip("169.254.20.10"), target).unwrap();
        let (none, other) = (off(OffReason::NoTarget), off(OffReason::NoTargetOfFamily));
        assert_eq!(modes(&wish), [FailOpen::To(target), none, other]);
        let wish = wish.intercept(&[target, ip("169.254.20.11")]).unwrap();
        assert_eq!(wish.addresses().len(), 4);
        assert_eq!(modes(&wish), [FailOpen::To(target), FailOpen::KubeProxy, other, FailOpen::KubeProxy]);
        assert_eq!(modes(&wish.without_fail_open()), [off(OffReason::SwitchedOff); 4]);
    }

    #[test]
    fn replaces_a_fallback_that_is_given_again() {
        let wish = desired(&["169.254.20.10"]).unwrap();
        let local = ip("169.254.20.10");
        let wish = wish.with_fallback(local, ip("10.96.0.10")).unwrap();
        let wish = wish.with_fallback(local, ip("10.96.0.11")).unwrap();
        assert_eq!(wish.fail_open().collect::<Vec<_>>(), [(local, FailOpen::To(ip("10.96.0.11")))]);
    }

    #[test]
    fn leaves_out_one_address_and_keeps_what_is_said_of_the_others() {
        let (local, service) = (ip("169.254.20.10"), ip("10.96.0.10"));
        let wish = desired(&["169.254.20.10"]).unwrap().intercept(&[service]).unwrap();
        let wish = wish.with_fallback(local, service).unwrap();
        let rest = wish.without(service).unwrap();
        assert_eq!(rest.fail_open().collect::<Vec<_>>(), [(local, FailOpen::To(service))]);
        assert!(!rest.is_service(service));
        assert_eq!(rest.without(local), None);
        let other = wish.without(local).unwrap();
        assert_eq!(other.fail_open().collect::<Vec<_>>(), [(service, FailOpen::KubeProxy)]);
    }

    #[test]
    fn rejects_fallbacks_that_could_not_answer() {
        let wish = desired(&["169.254.20.10", "169.254.20.11"]).unwrap();
        let local = ip("169.254.20.10");
        let cases = [
            (ip("192.0.2.1"), ip("10.96.0.10"), Error::NotLocal(ip("192.0.2.1"))),
            (local, ip("127.0.0.1"), Error::Target(ip("127.0.0.1"))),
            (local, ip("fd00::a"), Error::TargetFamily { address: local, target: ip("fd00::a") }),
            (local, local, Error::TargetIsLocal(local)),
            (local, ip("169.254.20.11"), Error::TargetIsLocal(ip("169.254.20.11"))),
        ];
        for (address, target, error) in cases {
            assert_eq!(wish.clone().with_fallback(address, target), Err(error));
        }
    }
}
