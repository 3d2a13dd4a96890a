//! The servers and the search list of a file in the format of resolv.conf(5).

use std::net::{IpAddr, SocketAddr};

/// The addresses of the `nameserver` lines, in order and with port 53.
///
/// As CoreDNS: a scope such as `%eth0` is cut off, other lines and what is no address do not count.
pub fn nameservers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next().filter(|&word| word == "nameserver")?;
            let address = words.next()?;
            let address = address.split_once('%').map_or(address, |(address, _)| address);
            Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, 53))
        })
        .collect()
}

/// The domains of the last `search` or `domain` line.
pub(crate) fn search(text: &str) -> Vec<String> {
    let mut domains = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("search") => domains = words.map(ToOwned::to_owned).collect(),
            Some("domain") => domains = words.take(1).map(ToOwned::to_owned).collect(),
            _ => {}
        }
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_of_nameserver_lines_and_nothing_else() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.2\n  nameserver\tfe80::1%eth0 extra\r\n\
                    nameserver\nnameserver example.org\nnameservers 9.9.9.9\n;nameserver 8.8.8.8\n";
        let expected: Vec<SocketAddr> = vec!["10.0.0.2:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()];
        assert_eq!(nameservers(text), expected);
        assert_eq!(search(text), ["a", "b"]);
        assert_eq!(search("search a\ndomain b c\n"), ["b"]);
    }
}
