//! Where a server block listens: its `bind`, resolved on this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nodestub_corefile::config::{Bind, BindTarget, HttpAddr, Scheme};

use super::CompileError;

/// CoreDNS's `server` label: `dns://169.254.20.10:53`; a wildcard address is left out.
pub(super) fn server_label(scheme: Scheme, listener: SocketAddr) -> String {
    match listener.ip() {
        ip if ip.is_unspecified() => format!("{scheme}://:{}", listener.port()),
        IpAddr::V6(ip) => format!("{scheme}://[{ip}]:{}", listener.port()),
        IpAddr::V4(ip) => format!("{scheme}://{ip}:{}", listener.port()),
    }
}

pub(super) fn http_address(address: &HttpAddr) -> SocketAddr {
    // `[::]` takes IPv4 as well; where a machine has no IPv6, the admin server falls back to 0.0.0.0.
    SocketAddr::new(address.host.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), address.port)
}

pub(super) fn listen_addresses(bind: &[Bind]) -> Result<BTreeSet<IpAddr>, CompileError> {
    if bind.is_empty() {
        return Ok(wildcards());
    }
    let mut addresses = BTreeSet::new();
    for bind in bind {
        let mut except = BTreeSet::new();
        for target in &bind.except {
            except.extend(target_addresses(target)?);
        }
        addresses.extend(target_addresses(&bind.target)?.difference(&except));
    }
    if addresses.is_empty() { Err(CompileError::NothingToBind) } else { Ok(addresses) }
}

fn target_addresses(target: &BindTarget) -> Result<BTreeSet<IpAddr>, CompileError> {
    match target {
        BindTarget::Addr(address) if address.is_unspecified() => Ok(wildcards()),
        BindTarget::Addr(address) => Ok(BTreeSet::from([*address])),
        BindTarget::Device(device) => {
            let of_device = device_addresses(device).map_err(CompileError::Addresses)?;
            if of_device.is_empty() { Err(CompileError::Device(device.clone())) } else { Ok(of_device) }
        }
    }
}

/// Both families, as far as the machine has them.
fn wildcards() -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::from([IpAddr::V4(Ipv4Addr::UNSPECIFIED)]);
    if std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        addresses.insert(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
    addresses
}

fn device_addresses(device: &str) -> std::io::Result<BTreeSet<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?.filter(|entry| entry.interface_name == device);
    let ip = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(all.filter_map(ip).collect())
}
