//! Upstreams that a Corefile names by host names: where they are.
//!
//! Looked up when the Corefile is compiled, at the start and at each reload, as CoreDNS does; not in between. By the
//! `resolver` lines of the `forward`, in their order, or by the system (`/etc/hosts`, `/etc/resolv.conf`). A name that is not
//! found is a Corefile that cannot be served: the last good one stays, and a start fails.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nodestub_corefile::config::{Config, Forward, Upstream};
use nodestub_wire::{Name, rtype};
use tokio::time::{Instant, timeout_at};

use crate::surroundings::ask_addresses;
use crate::tables::CompileError;

/// Longest time for all names of a Corefile: a reload, and a start, wait for them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names that the machine itself knows.
const HOSTS: &str = "/etc/hosts";

/// Most addresses of each family that are taken for one name.
const MAX_ADDRESSES: usize = 16;

/// Addresses by host name, and by whom was asked for it; nobody: the system.
pub type HostNames = HashMap<(String, Vec<SocketAddr>), Vec<IpAddr>>;

/// Looks up all host names of a Corefile.
///
/// # Errors
/// One is not found.
pub async fn find(config: &Config) -> Result<HostNames, CompileError> {
    let end = Instant::now() + PATIENCE;
    let mut found = HostNames::new();
    for forward in config.blocks.iter().flat_map(|block| &block.forward) {
        for upstream in &forward.to {
            let Upstream::Host { host, .. } = upstream else { continue };
            let key = (host.clone(), forward.resolvers.clone());
            if let Entry::Vacant(place) = found.entry(key) {
                let looked_up = timeout_at(end, look_up(forward, host)).await;
                place.insert(looked_up.map_err(|_| failed(forward, host, "no answer in time"))??);
            }
        }
    }
    Ok(found)
}

async fn look_up(forward: &Forward, host: &str) -> Result<Vec<IpAddr>, CompileError> {
    let failed = |reason: &str| failed(forward, host, reason);
    if forward.resolvers.is_empty() {
        let own = tokio::fs::read_to_string(HOSTS).await.unwrap_or_default();
        if let Some(addresses) = without_repetitions(in_hosts(&own, host)) {
            return Ok(addresses);
        }
        // With its final dot, so that no search list is walked; the C library finds no such name in the file.
        let looked_up = tokio::net::lookup_host((format!("{host}."), 0)).await;
        let addresses = looked_up.map_err(|error| failed(&error.to_string()))?;
        let addresses = addresses.map(|address| address.ip()).take(MAX_ADDRESSES).collect();
        return without_repetitions(addresses).ok_or_else(|| failed("no address"));
    }
    let name: Name = host.parse().map_err(|_| failed("it is no domain name"))?;
    for server in &forward.resolvers {
        let mut addresses = Vec::new();
        for qtype in [rtype::A, rtype::AAAA] {
            if let Some(Ok(found)) = ask_addresses(*server, &name, qtype, MAX_ADDRESSES).await {
                addresses.extend(found);
            }
        }
        if let Some(addresses) = without_repetitions(addresses) {
            return Ok(addresses);
        }
    }
    Err(failed("none of its `resolver`s has an address for it"))
}

fn failed(forward: &Forward, host: &str, reason: &str) -> CompileError {
    CompileError::Host(forward.from.clone(), host.to_owned(), reason.to_owned())
}

/// The addresses of a name in a file like /etc/hosts.
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let matching = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host)).then_some(address)
    });
    matching.take(MAX_ADDRESSES).collect()
}

/// `None`: there is no address.
fn without_repetitions(addresses: Vec<IpAddr>) -> Option<Vec<IpAddr>> {
    let mut unique = Vec::new();
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    (!unique.is_empty()).then_some(unique)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_the_file_has_all_its_addresses() {
        let text = "127.0.0.1 localhost LocalHost.localdomain # b.test\n::1\tlocalhost\n\nx b.test\n10.0.0.1 B.test.\n";
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(in_hosts(text, "localhost"), [ip("127.0.0.1"), ip("::1")]);
        assert_eq!(in_hosts(text, "b.test"), [ip("10.0.0.1")]);
        assert!(in_hosts(text, "localdomain").is_empty());
    }
}
