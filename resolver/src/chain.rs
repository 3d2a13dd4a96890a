//! What a block does around its cache: the directives that look at a question before it, and at an answer after it.
//!
//! ```text
//!   nsid ─ local ─ dns64 ─ any ─ chaos ─ loadbalance ─ rewrite ─ autopath ─ acl ─► the cache, and what is below it
//! ```
//!
//! The order is CoreDNS's. A block without any of these has no [`Chain`], and pays nothing. One that has is asked by the
//! fast side whether a question may pass without it ([`Chain::lets_pass`]); what may not is the slow side's, which goes
//! the whole way (`resolve`).

use std::net::IpAddr;

use nodestub_corefile::config::ServerBlock;
use nodestub_corefile::config::answering::{Chaos, Dns64};
use nodestub_wire::{Query, rtype};

use crate::acl::{AccessList, Verdict};
use crate::load_balance::Balance;
use crate::local::localhost::Localhost;
use crate::rewrite::Rules;
use crate::search::Search;

/// Code of the NSID option (RFC 5001).
pub const NSID: u16 = 3;

/// The directives around the cache of one block.
#[derive(Debug)]
pub struct Chain {
    /// `nsid`: what we say we are.
    pub nsid: Option<Vec<u8>>,
    /// `local`
    pub local: Option<Localhost>,
    /// `dns64`
    pub dns64: Option<Dns64>,
    /// `any`
    pub any: bool,
    /// `chaos`
    pub chaos: Option<Chaos>,
    /// `loadbalance`
    pub balance: Option<Balance>,
    /// `rewrite`
    pub rewrite: Option<Rules>,
    /// `autopath`
    pub search: Option<Search>,
    /// `acl`
    pub acl: Option<AccessList>,
}

impl Chain {
    /// `None`: the block has none of these.
    pub fn new(block: &ServerBlock) -> Option<Self> {
        let chain = Self {
            nsid: block.nsid.as_ref().map(|data| data.clone().unwrap_or_else(host_name).into_bytes()),
            local: block.local.as_ref().map(Localhost::new),
            dns64: block.dns64.clone(),
            any: block.any,
            chaos: block.chaos.clone(),
            balance: block.load_balance.as_ref().map(Balance::new),
            rewrite: (!block.rewrite.is_empty()).then(|| Rules::new(&block.rewrite)),
            search: block.autopath.as_ref().map(Search::new),
            acl: (!block.acl.is_empty()).then(|| AccessList::new(&block.acl)),
        };
        let Self { nsid, local, dns64, any, chaos, balance, rewrite, search, acl } = &chain;
        let is_empty = nsid.is_none()
            && local.is_none()
            && dns64.is_none()
            && !any
            && chaos.is_none()
            && balance.is_none()
            && rewrite.is_none()
            && search.is_none()
            && acl.is_none();
        (!is_empty).then_some(chain)
    }

    /// Whether a kept answer may be given to this question as it is (`loadbalance` and `autopath` apart). Allocates nothing. `client`
    /// is `None` where nobody knows it; then an access list lets nothing pass.
    pub fn lets_pass(&self, query: &Query, client: Option<IpAddr>, v6: bool) -> bool {
        if self.nsid.is_some() && query.edns_options.0 != query.edns_options.1 {
            return false;
        }
        if self.any && query.qtype == rtype::ANY {
            return false;
        }
        if query.qtype == rtype::AAAA && self.dns64.as_ref().is_some_and(|dns64| v6 || dns64.allow_ipv4) {
            return false;
        }
        let name = query.name.as_bytes();
        if self.local.as_ref().is_some_and(|local| local.is_responsible(name)) {
            return false;
        }
        if let Some(rules) = &self.rewrite {
            let mut buffer = [0; nodestub_wire::MAX_NAME];
            let passes = plain_text(name, &mut buffer)
                .is_some_and(|text| rules.leave_alone(text, query.qtype, query.qclass));
            if !passes {
                return false;
            }
        }
        match &self.acl {
            Some(acl) => client.is_some_and(|client| {
                // No rule has touched the name: it is the final one.
                matches!(acl.verdict(name, query.qtype, client), Verdict::Allow)
            }),
            None => true,
        }
    }
}

/// A lower-cased name as text with its final dot; `None` where a byte would have to be escaped.
fn plain_text<'a>(name: &[u8], buffer: &'a mut [u8; nodestub_wire::MAX_NAME]) -> Option<&'a str> {
    let mut rest = name;
    let mut at = 0;
    while let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = tail.split_at_checked(usize::from(length))?;
        if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*' | b'/'))
        {
            return None;
        }
        buffer.get_mut(at..at + label.len())?.copy_from_slice(label);
        at += label.len();
        *buffer.get_mut(at)? = b'.';
        at += 1;
        rest = after;
    }
    if at == 0 {
        *buffer.first_mut()? = b'.';
        at = 1;
    }
    std::str::from_utf8(buffer.get(..at)?).ok()
}

/// The machine's name.
pub fn host_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_str().map_or_else(|_| "localhost".to_owned(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_text_without_allocating() {
        let mut buffer = [0; nodestub_wire::MAX_NAME];
        assert_eq!(plain_text(b"\x03www\x07example\0", &mut buffer), Some("www.example."));
        assert_eq!(plain_text(b"\0", &mut buffer), Some("."));
        assert_eq!(plain_text(b"\x03w.w\0", &mut buffer), None);
        let longest = [
            [&[63][..], &[b'a'; 63]].concat(),
            [&[63][..], &[b'b'; 63]].concat(),
            [&[63][..], &[b'c'; 63]].concat(),
            [&[61][..], &[b'd'; 61]].concat(),
            vec![0],
        ]
        .concat();
        assert_eq!((longest.len(), plain_text(&longest, &mut buffer).map(str::len)), (255, Some(254)));
    }
}
