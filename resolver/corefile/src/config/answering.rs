//! What a Corefile says about who is answered, and about answers of our own: `acl`, `loadbalance`, `dns64`, `local`,
//! `chaos`, `template`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use nodestub_wire::Name;

use super::rewriting::Pattern;
use crate::expression::Expression;
use crate::gotemplate::GoTemplate;

/// A network: an address and how many bits of it count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// Bits behind the prefix are 0.
    pub address: IpAddr,
    /// 0 to 32, or to 128.
    pub length: u8,
}

/// `acl [ZONE...] { ACTION [type TYPE...] [net NETWORK...] }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Acl {
    /// Names that the policies are for; never empty.
    pub zones: Vec<Name>,
    /// In the order of the file; the first that matches decides.
    pub policies: Vec<Policy>,
}

/// One line of `acl`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Policy {
    /// What is done.
    pub action: Action,
    /// Types that are meant; empty: all.
    pub types: Vec<u16>,
    /// Clients that are meant; empty: all.
    pub networks: Vec<Network>,
}

/// What `acl` does with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Answers it.
    Allow,
    /// REFUSED.
    Block,
    /// NOERROR without records.
    Filter,
    /// Silence.
    Drop,
}

/// `loadbalance [round_robin|weighted FILE] { reload DURATION; prefer NETWORK... }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoadBalance {
    /// `weighted`: the file with the weights, and how often it is looked at (default 30 s; 0: never).
    pub weighted: Option<(PathBuf, Duration)>,
    /// Addresses in these come first, in this order.
    pub prefer: Vec<Network>,
}

/// `dns64 [PREFIX] { translate_all; prefix PREFIX; allow_ipv4 }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dns64 {
    /// Default `64:ff9b::`.
    pub prefix: Ipv6Addr,
    /// 32, 40, 48, 56, 64 or 96 (RFC 6052, 2.2). Default 96.
    pub length: u8,
    /// Names that have AAAA records of their own are translated as well.
    pub translate_all: bool,
    /// Clients that ask by IPv4 are served as well.
    pub allow_ipv4: bool,
}

/// `local { localhost_prefix on|off }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local {
    /// Names such as `localhost.example.org` are this machine. Default on.
    pub localhost_prefix: bool,
}

/// `chaos [VERSION] [AUTHOR...]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chaos {
    /// What `version.bind` says. Default `None`: the daemon's own.
    pub version: Option<String>,
    /// What `authors.bind` says, in alphabetical order.
    pub authors: Vec<String>,
}

/// `autopath [ZONE...] FILE|@kubernetes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AutoPath {
    /// Names that may begin a walk; never empty. With `@kubernetes`, the cluster's domain.
    pub zones: Vec<Name>,
    /// What is walked along.
    pub path: SearchPath,
}

/// The search list of clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SearchPath {
    /// That of a file, the same for all clients. At most 32 domains.
    List(Vec<Name>),
    /// A pod's: its namespace's, the services', the cluster's, then these, which are the node's.
    Kubernetes(Vec<Name>),
}

/// `template CLASS TYPE [ZONE...] { ... }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// 255: any.
    pub qclass: u16,
    /// 255: any.
    pub qtype: u16,
    /// Never empty.
    pub zones: Vec<Name>,
    /// The first that matches the name is used; never empty.
    pub matches: Vec<Pattern>,
    /// `var NAME EXPRESSION`: values for expressions behind it and for records, in the order of the file.
    pub variables: Vec<(String, Expression)>,
    /// `expr EXPRESSION`: what must be true for a name that matches.
    pub conditions: Vec<Expression>,
    /// Records of the answer section.
    pub answer: Vec<GoTemplate>,
    /// Records of the additional section.
    pub additional: Vec<GoTemplate>,
    /// Records of the authority section.
    pub authority: Vec<GoTemplate>,
    /// Default NOERROR.
    pub rcode: u16,
    /// `ederror CODE [TEXT]`: an extended error (RFC 8914).
    pub extended_error: Option<(u16, String)>,
    /// `fallthrough [ZONE...]`: where a name that does not match is passed on; empty: everywhere.
    pub fallthrough: Option<Vec<Name>>,
}

impl Network {
    /// Whether an address lies in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.length)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.length)
            }
            _ => false,
        }
    }

    /// `ADDRESS/LENGTH`. `None`: it is none.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let length: u8 = length.parse().ok()?;
        let address = match address {
            IpAddr::V4(address) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Self { address, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let network = |text: &str| Network::read(text).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(network("10.9.0.0/15").holds(ip("10.8.1.1")));
        assert!(network("10.8.0.0/15").holds(ip("::ffff:10.9.1.1")));
        assert!(!network("10.8.0.0/15").holds(ip("10.10.0.0")));
        assert!(network("0.0.0.0/0").holds(ip("1.2.3.4")));
        assert!(!network("0.0.0.0/0").holds(ip("::1")));
        assert!(network("fd00::/8").holds(ip("fdff::1")));
        assert!(network("::1/128").holds(ip("::1")) && !network("::1/128").holds(ip("::2")));
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "x/8", "10.0.0.0/"] {
            assert_eq!(Network::read(text), None, "{text}");
        }
    }
}
