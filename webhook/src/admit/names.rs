//! DNS names as the Kubernetes API takes them in search lists (RFC 1123, lower case).

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes (RFC 1035, 2.3.4, without the final dot).
pub const MAX_NAME_BYTES: usize = 253;
/// The longest label, in bytes (RFC 1035, 2.3.4).
const MAX_LABEL_BYTES: usize = 63;
/// The longest cluster domain, in bytes: `<namespace>.svc.<domain>` must be a name for any namespace.
pub const MAX_CLUSTER_DOMAIN_BYTES: usize = MAX_NAME_BYTES - MAX_LABEL_BYTES - ".svc.".len();

/// A domain name that the API accepts in a search list: lower case, no final dot.
///
/// Underscores are refused, for API servers before 1.34 refuse the pod that carries them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Domain {
    type Err = NotADomain;

    fn from_str(text: &str) -> Result<Self, NotADomain> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label) {
            Ok(Self(name))
        } else {
            Err(NotADomain(text.to_owned()))
        }
    }
}

/// Whether the text is a label (RFC 1123, lower case), such as a namespace's name.
#[must_use]
pub fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_LABEL_BYTES
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// The text is not a domain name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotADomain(String);

impl fmt::Display for NotADomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a domain name: letters, digits and hyphens, with dots between, up to {MAX_NAME_BYTES} characters",
            self.0
        )
    }
}

impl std::error::Error for NotADomain {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_without_their_final_dot_and_in_lower_case() {
        assert_eq!("Corp.Example.".parse::<Domain>().unwrap().as_str(), "corp.example");
        assert_eq!("local".parse::<Domain>().unwrap().as_str(), "local");
    }

    #[test]
    fn rejects_what_the_api_rejects() {
        for bad in
            ["", ".", "a..b", "_tcp.example", "a b", "-a", "a-", "é", &"a".repeat(64), &"a.".repeat(128)]
        {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }
}
