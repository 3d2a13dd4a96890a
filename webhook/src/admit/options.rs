//! Options of `resolv.conf`: those that a pod brings are kept as they are, those in our own settings are checked.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The bounds of `ndots` (`RES_MAXNDOTS` of glibc's resolver).
pub const NDOTS: RangeInclusive<u8> = 0..=15;
/// The bounds of `timeout`, in seconds (`RES_MAXRETRANS`).
pub const TIMEOUT_SECONDS: RangeInclusive<u8> = 1..=30;
/// The bounds of `attempts` (`RES_MAXRETRY`).
pub const ATTEMPTS: RangeInclusive<u8> = 1..=5;

/// What a warning says is allowed in a list of options.
pub const ALLOWED_OPTIONS: &str = "ndots:0-15, timeout:1-30, attempts:1-5, and flags of resolv.conf(5)";

/// Options without a value that resolv.conf(5) names.
pub(crate) const FLAGS: [&str; 12] = [
    "debug",
    "edns0",
    "inet6",
    "no-aaaa",
    "no-check-names",
    "no-reload",
    "no-tld-query",
    "rotate",
    "single-request",
    "single-request-reopen",
    "trust-ad",
    "use-vc",
];

/// One option, in the shape of the API (`PodDNSConfigOption`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsOption {
    /// Such as `ndots`.
    pub name: String,
    /// Such as `5`; none for flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Fields that this version does not know; they survive.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl DnsOption {
    /// An `ndots` option.
    #[must_use]
    pub fn ndots(dots: u8) -> Self {
        Self { name: "ndots".to_owned(), value: Some(dots.to_string()), unknown: Map::new() }
    }

    /// Whether both write the same into `resolv.conf`.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.name == other.name && self.value.as_deref().unwrap_or("") == other.value.as_deref().unwrap_or("")
    }
}

impl fmt::Display for DnsOption {
    /// As kubelet writes it: an empty value counts as none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_deref() {
            None | Some("") => f.write_str(&self.name),
            Some(value) => write!(f, "{}:{value}", self.name),
        }
    }
}

impl FromStr for DnsOption {
    type Err = NotAnOption;

    /// Reads `name` or `name:value`; only options of resolv.conf(5), within their bounds.
    fn from_str(text: &str) -> Result<Self, NotAnOption> {
        let option = |value: Option<u8>| {
            let name = text.split(':').next().unwrap_or(text);
            Self { name: name.to_owned(), value: value.map(|value| value.to_string()), unknown: Map::new() }
        };
        let bad = || NotAnOption(text.to_owned());
        match text.split_once(':') {
            None if FLAGS.contains(&text) => Ok(option(None)),
            None => Err(bad()),
            Some((name, value)) => {
                let bounds = match name {
                    "ndots" => NDOTS,
                    "timeout" => TIMEOUT_SECONDS,
                    "attempts" => ATTEMPTS,
                    _ => return Err(bad()),
                };
                let value = number(value, &bounds).ok_or_else(bad)?;
                Ok(option(Some(value)))
            }
        }
    }
}

/// Reads digits within bounds; no sign, no blanks.
#[must_use]
pub fn number(text: &str, bounds: &RangeInclusive<u8>) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|value| digits && bounds.contains(value))
}

/// The text is not an option that we take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAnOption(String);

impl fmt::Display for NotAnOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an option; allowed: {ALLOWED_OPTIONS}", self.0)
    }
}

impl std::error::Error for NotAnOption {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_options_and_writes_them_again() {
        for text in
            ["ndots:0", "ndots:15", "timeout:1", "attempts:5", "rotate", "single-request-reopen", "use-vc"]
        {
            assert_eq!(text.parse::<DnsOption>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rejects_unknown_options_and_values_out_of_bounds() {
        for text in
            ["", ":", "ndots", "ndots:", "ndots:16", "ndots:+1", "ndots: 1", "timeout:0", "attempts:6"]
        {
            assert!(text.parse::<DnsOption>().is_err(), "{text:?}");
        }
        for text in ["rotate:1", "rotat", "ndots:1:2", "timeout:31", "Rotate"] {
            assert!(text.parse::<DnsOption>().is_err(), "{text:?}");
        }
    }
}
