//! Numbers, durations and addresses as a Corefile writes them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::config::HttpAddr;
use crate::context::Problem;
use crate::report::shown;

/// A whole number from `least` to `most`, written in digits alone (a `+` is allowed, as in Go).
pub(crate) fn number(text: &str, least: u64, most: u64) -> Result<u64, Problem> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let value = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    value.filter(|value| (least..=most).contains(value)).ok_or_else(|| {
        Problem::new(format!("{} is not a number from {least} to {most}", shown(text)))
            .help("write it in digits, without a unit")
    })
}

/// As [`number`], up to 4294967295.
pub(crate) fn number_u32(text: &str, least: u32) -> Result<u32, Problem> {
    let value = number(text, u64::from(least), u64::from(u32::MAX))?;
    u32::try_from(value).map_err(|_| Problem::new("the number is too large"))
}

/// A duration in Go's notation (`time.ParseDuration`): `300ms`, `1.5h`, `1h30m`, `0`; never negative.
pub(crate) fn duration(text: &str) -> Result<Duration, Problem> {
    let problem = |reason: &str| Problem::new(format!("{} is not a duration: {reason}", shown(text)));
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    if unsigned.starts_with('-') {
        return Err(problem("it is negative").help("write a duration such as `30s`"));
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(problem("its unit is missing")
            .help(format!("write `{}s` if seconds are meant", shorten(unsigned))));
    }
    nanoseconds(unsigned)
        .and_then(|nanoseconds| u64::try_from(nanoseconds).ok())
        // Go's durations end here too, at about 292 years.
        .filter(|&nanoseconds| i64::try_from(nanoseconds).is_ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| {
            problem("a number and one of the units ns, us, ms, s, m, h is expected")
                .help("write a duration such as `30s` or `1h30m`")
        })
}

fn shorten(digits: &str) -> &str {
    digits.get(..20).unwrap_or(digits)
}

fn nanoseconds(mut text: &str) -> Option<u128> {
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    if text.is_empty() {
        return None;
    }
    let mut total = 0_u128;
    while !text.is_empty() {
        let (whole, rest) = split_digits(text);
        let (fraction, rest) = match rest.strip_prefix('.') {
            Some(rest) => split_digits(rest),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_length = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit_length);
        let (_, unit) = UNITS.into_iter().find(|&(name, _)| name == unit)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(u128::from(whole) * unit)?;
        // Digits below a nanosecond do not count.
        let mut weight = unit;
        for digit in fraction.bytes().take(15) {
            weight /= 10;
            total = total.checked_add(u128::from(digit - b'0') * weight)?;
        }
        text = rest;
    }
    Some(total)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `[HOST]:PORT` of an HTTP endpoint; `localhost` is 127.0.0.1.
pub(crate) fn http_addr(text: &str) -> Result<HttpAddr, Problem> {
    let problem = |reason: &str| {
        Problem::new(format!("{} is not an address to listen on: {reason}", shown(text)))
            .help("write `:PORT` or `ADDRESS:PORT`, with IPv6 in brackets")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| problem("its port is missing"))?;
    let port = port
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| port.parse().ok())
        .flatten()
        .ok_or_else(|| problem("its port is not a number from 0 to 65535"))?;
    let host = match host {
        "" => None,
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => Some(
            bracketed_or_v4(host)
                .ok_or_else(|| problem("its host is neither an IP address nor `localhost`"))?,
        ),
    };
    Ok(HttpAddr { host, port })
}

/// `IP[:PORT]` of a DNS server, port 53 by default; `None` where the text does not start with an IP address.
pub(crate) fn server_addr(text: &str) -> Option<Result<SocketAddr, Problem>> {
    const DEFAULT_PORT: u16 = 53;
    server_addr_or(text, DEFAULT_PORT)
}

/// As [`server_addr`], with another port where none is given.
pub(crate) fn server_addr_or(text: &str, default_port: u16) -> Option<Result<SocketAddr, Problem>> {
    if let Some(address) = text.parse().ok().or_else(|| bracketed_or_v4(text)) {
        return Some(Ok(SocketAddr::new(address, default_port)));
    }
    let (host, port) = text.rsplit_once(':')?;
    let address = bracketed_or_v4(host)?;
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse::<u16>().ok()).flatten();
    Some(port.filter(|&port| port > 0).map(|port| SocketAddr::new(address, port)).ok_or_else(|| {
        Problem::new(format!("the port of {} is not a number from 1 to 65535", shown(text)))
            .help(format!("write ADDRESS:PORT, or leave the port out for {default_port}"))
    }))
}

fn bracketed_or_v4(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_as_go_does() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000),
            ("+5s", 5_000),
            ("0.5s", 500),
            (".5s", 500),
            ("1.s", 1_000),
            ("300ms", 300),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("1h15m30.918s", 4_530_918),
            ("5000us", 5),
            ("5000µs", 5),
            ("5000μs", 5),
            ("5000000ns", 5),
            ("20.000s", 20_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration("0.1ns"), Ok(Duration::ZERO));
        assert_eq!(duration("9223372036854775807ns"), Ok(Duration::from_nanos(i64::MAX.unsigned_abs())));
    }

    #[test]
    fn rejects_what_go_rejects_and_negative_durations() {
        for text in [
            "",
            "3",
            "-5s",
            "s",
            ".",
            ".s",
            "+",
            "+.s",
            "1d",
            "1s 2s",
            "3000000h",
            "9223372036854775808ns",
            "99999999999999999999999999999999999s",
            "a",
            "1.2.3s",
            "٣s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("30").unwrap_err().help.as_deref(), Some("write `30s` if seconds are meant"));
    }

    #[test]
    fn reads_numbers_within_bounds() {
        assert_eq!(number("30", 1, 30), Ok(30));
        assert_eq!(number("+30", 1, 30), Ok(30));
        for text in ["", "+", "31", "0", "-1", "1.0", "3s", "99999999999999999999"] {
            assert!(number(text, 1, 30).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_addresses_of_endpoints() {
        let addr =
            |host: Option<&str>, port| Ok(HttpAddr { host: host.map(|host| host.parse().unwrap()), port });
        assert_eq!(http_addr(":9253"), addr(None, 9253));
        assert_eq!(http_addr("169.254.20.10:8080"), addr(Some("169.254.20.10"), 8080));
        assert_eq!(http_addr("[::1]:0"), addr(Some("::1"), 0));
        assert_eq!(http_addr("localhost:9153"), addr(Some("127.0.0.1"), 9153));
        for text in
            ["", "8080", "127.0.0.1", ":", ":http", ":65536", "::1:80", "example.org:80", "[127.0.0.1]:80"]
        {
            assert!(http_addr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_addresses_of_servers() {
        for (text, expected) in [
            ("8.8.8.8", "8.8.8.8:53"),
            ("8.8.8.8:153", "8.8.8.8:153"),
            ("fe80::1", "[fe80::1]:53"),
            ("[fd01::1]", "[fd01::1]:53"),
            ("[fd01::1]:153", "[fd01::1]:153"),
        ] {
            assert_eq!(server_addr(text), Some(Ok(expected.parse().unwrap())), "{text}");
        }
        for text in ["resolv.conf", "8.9.1043", "a.a.a.a:153", "8.8.8.8::53", "", "/etc/resolv.conf:53"] {
            assert_eq!(server_addr(text), None, "{text}");
        }
        for text in ["8.8.8.8:", "8.8.8.8:0", "8.8.8.8:x", "[::1]:70000"] {
            assert!(server_addr(text).unwrap().is_err(), "{text}");
        }
    }
}
