//! Zones as a Corefile writes them: `[SCHEME://]NAME[:PORT]` or `[SCHEME://]NETWORK/LENGTH[:PORT]`, the scheme being `dns` or
//! `tls`.
//!
//! A network stands for its reverse zones. Where its length is not at a label's border (8 bits for IPv4, 4 for
//! IPv6) it stands for all zones of the next longer border, as in CoreDNS's `plugin/pkg/cidr`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nodestub_wire::Name;

use crate::config::Scheme;
use crate::context::Problem;
use crate::report::shown;

/// Transports that CoreDNS knows, and that are not served here.
const FOREIGN_TRANSPORTS: [&str; 5] = ["quic", "grpc", "https", "https3", "unix"];

/// What a zone's text says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Zones {
    /// Never empty; several only for a network, at most 128.
    pub(crate) names: Vec<Name>,
    pub(crate) port: Option<u16>,
    /// `None`: it says none, and `dns` is meant.
    pub(crate) scheme: Option<Scheme>,
}

/// Reads one zone.
pub(crate) fn zones(text: &str) -> Result<Zones, Problem> {
    let (scheme, text) = split_scheme(text)?;
    let (host, port) = split_port(text)?;
    if host.is_empty() && port.is_some() {
        // `:53` is the root.
        return Ok(Zones { names: vec![Name::root()], port, scheme });
    }
    if let Some((address, length)) = host.rsplit_once('/')
        && let Ok(address) = address.parse::<IpAddr>()
    {
        // CoreDNS refuses these too: they are too easily mistaken for a port.
        if host.starts_with(':') || (host.starts_with('0') && host.contains(':')) {
            return Err(Problem::new(format!("the network {} cannot start like this", shown(host)))
                .help("write the reverse zone itself, which ends with `ip6.arpa`"));
        }
        let names = reverse_zones(address, length).ok_or_else(|| {
            Problem::new(format!("{} is not a network", shown(host)))
                .help("write ADDRESS/LENGTH; the length is at most 32 for IPv4 and 128 for IPv6")
        })?;
        return Ok(Zones { names, port, scheme });
    }
    Ok(Zones { names: vec![name(host)?], port, scheme })
}

/// Reads one domain name.
pub(crate) fn name(text: &str) -> Result<Name, Problem> {
    let problem = |reason: &str| Problem::new(format!("{} is not a domain name: {reason}", shown(text)));
    if text.contains(['{', '}']) {
        return Err(problem("a brace stands in it").help("put a space before and after each brace"));
    }
    if text.contains(',') {
        return Err(problem("a comma stands in it").help("put a space after the comma"));
    }
    if let Some(wrong) = text.chars().find(|c| matches!(c, '(' | ')' | '"' | ':' | '\'')) {
        return Err(problem(&format!("{wrong:?} stands in it")).help("write a name such as `cluster.local`"));
    }
    text.parse().map_err(|error: nodestub_wire::NameError| {
        problem(&error.to_string()).help("write a name such as `cluster.local`, or `.` for all names")
    })
}

fn split_scheme(text: &str) -> Result<(Option<Scheme>, &str), Problem> {
    let Some((transport, rest)) = text.split_once("://") else { return Ok((None, text)) };
    match transport {
        "dns" => Ok((Some(Scheme::Dns), rest)),
        "tls" => Ok((Some(Scheme::Tls), rest)),
        foreign if FOREIGN_TRANSPORTS.contains(&foreign) => {
            Err(Problem::new(format!("serving over `{foreign}://` is not supported by this version"))
                .help("serve the zone over TLS with `tls://`, or over plain DNS: leave the transport out"))
        }
        unknown => Err(Problem::new(format!("unknown transport {}", shown(unknown)))
            .help("leave it out: plain DNS is meant then")),
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), Problem> {
    let Some((host, port)) = text.rsplit_once(':') else { return Ok((text, None)) };
    if port.is_empty() {
        return Err(Problem::new(format!("a port is missing after the `:` of {}", shown(text)))
            .help("write it, or take the `:` away"));
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        // A network of IPv6, or no port at all; the name's own check speaks then.
        return Ok((text, None));
    }
    match port.parse() {
        Ok(port) => Ok((host, Some(port))),
        Err(_) => {
            Err(Problem::new(format!("{} is not a port", shown(port))).help("write a number from 0 to 65535"))
        }
    }
}

fn reverse_zones(address: IpAddr, length: &str) -> Option<Vec<Name>> {
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length: u32 = length.parse().ok()?;
    let (bits, width, label_bits) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), Ipv4Addr::BITS, 8),
        IpAddr::V6(address) => (address.to_bits(), Ipv6Addr::BITS, 4),
    };
    if length > width {
        return None;
    }
    let border = length.next_multiple_of(label_bits);
    // A shift by the whole width leaves nothing.
    let network = bits.checked_shr(width - length).unwrap_or(0) << (border - length);
    let count = 1_u128 << (border - length);
    (0..count)
        .map(|index| {
            let prefix = network + index;
            let mut text = String::new();
            for label in 0..border / label_bits {
                let value = (prefix >> (label * label_bits)) & ((1 << label_bits) - 1);
                text += &(if label_bits == 8 { format!("{value}.") } else { format!("{value:x}.") });
            }
            text += if label_bits == 8 { "in-addr.arpa." } else { "ip6.arpa." };
            text.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(text: &str, names: &[&str], port: Option<u16>) {
        expect_by(None, text, names, port);
    }

    fn expect_by(scheme: Option<Scheme>, text: &str, names: &[&str], port: Option<u16>) {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(zones(text), Ok(Zones { names, port, scheme }), "{text}");
    }

    #[test]
    fn reads_names_ports_and_schemes() {
        expect(".:53", &["."], Some(53));
        expect(":1053", &["."], Some(1053));
        expect("Example.ORG", &["example.org"], None);
        expect("example.org.:53", &["example.org"], Some(53));
        expect_by(Some(Scheme::Dns), "dns://example.org", &["example.org"], None);
        expect_by(Some(Scheme::Dns), "dns://.:0", &["."], Some(0));
        expect_by(Some(Scheme::Tls), "tls://.", &["."], None);
        expect_by(Some(Scheme::Tls), "tls://Example.org:5353", &["example.org"], Some(5353));
        expect_by(Some(Scheme::Tls), "tls://:853", &["."], Some(853));
        expect_by(Some(Scheme::Tls), "tls://10.0.0.0/16", &["0.10.in-addr.arpa"], None);
        expect("0/25.2.0.192.in-addr.arpa", &["0/25.2.0.192.in-addr.arpa"], None);
        expect("127.0.0.1", &["127.0.0.1"], None);
    }

    #[test]
    fn a_network_stands_for_its_reverse_zones() {
        expect("10.0.0.0/8:53", &["10.in-addr.arpa"], Some(53));
        expect("10.0.0.0/15", &["0.10.in-addr.arpa", "1.10.in-addr.arpa"], None);
        expect("10.0.0.0/16", &["0.10.in-addr.arpa"], None);
        expect("192.168.1.1/23", &["0.168.192.in-addr.arpa", "1.168.192.in-addr.arpa"], None);
        expect(
            "10.129.60.0/22",
            &[
                "60.129.10.in-addr.arpa",
                "61.129.10.in-addr.arpa",
                "62.129.10.in-addr.arpa",
                "63.129.10.in-addr.arpa",
            ],
            None,
        );
        expect("1.2.3.4/32", &["4.3.2.1.in-addr.arpa"], None);
        expect("0.0.0.0/0", &["in-addr.arpa"], None);
        expect("2001:db8::/31", &["8.b.d.0.1.0.0.2.ip6.arpa", "9.b.d.0.1.0.0.2.ip6.arpa"], None);
        expect(
            "2001:db8::/30:5300",
            &[
                "8.b.d.0.1.0.0.2.ip6.arpa",
                "9.b.d.0.1.0.0.2.ip6.arpa",
                "a.b.d.0.1.0.0.2.ip6.arpa",
                "b.b.d.0.1.0.0.2.ip6.arpa",
            ],
            Some(5300),
        );
        expect(
            "2001:db8::/115",
            &[
                "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ],
            None,
        );
        expect("2001:db8::/112", &["0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"], None);
        assert_eq!(zones("10.0.0.0/1").unwrap().names.len(), 128);
        assert_eq!(zones("10.9.3.0/18").unwrap().names.len(), 64);
        assert_eq!(zones("8000::/1").unwrap().names.len(), 8);
    }

    #[test]
    fn rejects_what_is_no_zone_and_says_what_to_do() {
        for text in [
            "",
            "example.org:",
            "example.org:99999",
            "example.org:dns",
            "tls://",
            "https://example.org",
            "ftp://example.org",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::fFFF:B:F/115",
            "0::/8",
            "::1",
            "a..b",
            "{}",
            "example.org{",
            "a,b",
            "(snippet",
        ] {
            let problem = zones(text).expect_err(text);
            assert!(problem.help.is_some(), "{text}");
        }
    }

    #[test]
    fn names_the_transport_that_is_not_supported() {
        assert_eq!(
            zones("https://example.org").unwrap_err().message,
            "serving over `https://` is not supported by this version"
        );
    }
}
