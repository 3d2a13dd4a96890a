//! The rules that follow from a wish, as plain values. No kernel here.
//!
//! ```text
//! Desired ──ruleset()──▶ Ruleset ┬─ Display: a file for `nft -f` (what `nodestub-resolver rules` prints)
//!                                └─ nftables::replace: the same as netlink messages
//! ```
//!
//! # The bypass: which rules, and why no others
//!
//! For each address, UDP and TCP apart, port P:
//!
//! | chain | rule | without it, tracked is |
//! | --- | --- | --- |
//! | prerouting | to the address, destination port P | a pod's query |
//! | output | from the address, source port P | every answer (the answer to an untracked query opens a new entry) |
//! | output | to the address, destination port P | a query of the host's own processes |
//!
//! and with a health port H, TCP only, because kubelets ask on the node itself:
//!
//! | chain | rule | without it, tracked is |
//! | --- | --- | --- |
//! | output | to the address, destination port H | a probe |
//! | output | from the address, source port H | the answer to a probe |
//!
//! A packet over `lo` keeps the verdict of the output chain, so the host's queries need nothing in prerouting.
//! NodeLocal has the same eight rules for an address in its raw table. `tests/bypass.rs` takes each one away and sees
//! entries appear.
//!
//! # Fail-open
//!
//! The rule that skips connection tracking matches only while a socket listens on the very address. While none does,
//! the packet becomes an ordinary tracked query to the fallback target, which kube-proxy may translate further:
//!
//! ```text
//! prerouting ─▶ dns_udp ──────────── listener: notrack ──▶ the resolver
//!     │            └───────────────────────────────┐
//!     └───────▶ dns_tcp4 ─ SYN ─▶ new_tcp4 ─ listener: forget, notrack ─▶ the resolver
//!                  │                  └─▶ open_tcp4 (remember) ─▶ open: own zone, target as destination ─▶ DNAT...
//!                  ├ remembered ──────────▶ open_tcp4                        ▲
//!                  ├ a socket: notrack ─▶ the resolver                       │
//!                  └─────────────────────────────────────────────────────────┘
//! postrouting: an answer in that zone gets its old source back: the address that was asked
//! ```
//!
//! * **A conntrack zone and no packet mark** shows the way back: marks belong to others too (kube-proxy, Cilium). Each
//!   address has its own zone, so several may share a target.
//! * **Wildcard sockets count as absent** (`socket wildcard`): a listener on 0.0.0.0:53 is somebody else's.
//! * **Transparent sockets count as absent** (`socket transparent`): so a resolver that ends sends new queries away and
//!   still gets those that are past this question. Closing would lose them: between this question and the kernel's own
//!   search for the socket lies some microsecond, and more where a virtual processor is stopped.
//! * **`opened_tcp4`** holds TCP connections that were opened past the listener. When it is back, it would reset their
//!   next segment; so they stay where they are. It is kept by client address, client port and address asked, for
//!   [`OPENED_TIMEOUT_SECONDS`] after the last segment, at most [`OPENED_SIZE`] of them.
//! * **SYN comes before the set**, and a listener's `delete` stands there: the same client port may come again, to the
//!   listener this time.
//! * **`update` stands in a rule of its own**: a full set ends the rule, and the packet must go on to `open` all the same.
//! * **`socket transparent 0`** in place of `socket wildcard 0` for TCP: the latter says nothing about sockets in
//!   TIME_WAIT or half open, and this one is true of every socket that does not ask to be passed by.
//! * **`iif "lo" return`**: the host's own packets are bound to be delivered here, and cannot be sent out again. They
//!   are not covered: without a listener they are refused, and without this rule they would get no word at all.
//! * **Intercepted service addresses** go the same way, but chain `open` has no rule for them: the packet stays tracked
//!   with its destination, and kube-proxy's DNAT takes it before it is routed to us. Their chain output has no rule for
//!   the host's queries, so kube-proxy has those always.
//!
//!
//! # The proof
//!
//! Whether a query would reach the fallback is tried by a query of our own ([`crate::proof`]), while somebody listens too:
//! it comes in by a device of ours, whose packets go to `open` past the question who listens. To an intercepted service
//! address it must leave untracked (`oifname`), or kube-proxy would translate it before it has come in.
//!
//! `tests/failopen.rs` deletes each rule, and swaps each two whose order matters, and sees packets go astray.

mod model;

use std::fmt;
use std::net::IpAddr;

use crate::desired::{Desired, FailOpen, TABLE};

pub use model::{Chain, Family, Hook, Protocol, Rule, SetUse, Side, Statement};

/// The conntrack zone of the first address with a fallback target; the next has the next. Nobody else's, we hope.
pub const FIRST_ZONE: u16 = 20_051;
/// The most TCP connections, of a family, that are remembered as opened past the listener.
pub const OPENED_SIZE: u32 = 16_384;
/// How long one of them is remembered after its last segment, in seconds.
pub const OPENED_TIMEOUT_SECONDS: u16 = 120;
/// Computes the rules. See the module's comment.
pub(crate) fn ruleset(desired: &Desired) -> Ruleset {
    let modes: Vec<(IpAddr, FailOpen)> = desired.fail_open().collect();
    let mut rules = Vec::new();
    prerouting(desired, &modes, &mut rules);
    output(desired, &modes, &mut rules);
    let targets: Vec<(IpAddr, IpAddr, u16)> = modes
        .iter()
        .filter_map(|(address, mode)| match mode {
            FailOpen::To(target) => Some((*address, *target)),
            FailOpen::KubeProxy | FailOpen::Off(_) => None,
        })
        .zip(FIRST_ZONE..)
        .map(|((address, target), zone)| (address, target, zone))
        .collect();
    for &(address, target, zone) in &targets {
        let (from, back) = ((Side::Source, target), (Side::Source, address));
        let statements = vec![
            Statement::Zone(zone),
            Statement::IsReply,
            Statement::Address(from.0, from.1),
            Statement::SetAddress(back.0, back.1),
        ];
        rules.push(Rule::new(Chain::Postrouting, statements, "answers come from the address asked"));
    }
    let covered = |family: Family| {
        modes.iter().any(|(address, mode)| family.has(*address) && !matches!(mode, FailOpen::Off(_)))
    };
    let has_target = |family: Family| targets.iter().any(|(address, ..)| family.has(*address));
    if Family::ALL.into_iter().any(covered) {
        dns_udp(!targets.is_empty(), &mut rules);
    }
    let mut sets = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| covered(*family)) {
        sets.push(family);
        dns_tcp(family, has_target(family), &mut rules);
    }
    for &(address, target, zone) in &targets {
        let statements = vec![
            Statement::Address(Side::Destination, address),
            Statement::SetZone(zone),
            Statement::SetAddress(Side::Destination, target),
            Statement::Accept,
        ];
        rules.push(Rule::new(Chain::Open, statements, "nobody listens: to the fallback"));
    }
    // Base chains stand even when empty; the others exist where a rule stands in them.
    let chains = Chain::ALL
        .into_iter()
        .filter(|chain| {
            matches!(chain, Chain::Prerouting | Chain::Output)
                || rules.iter().any(|rule| rule.chain() == *chain)
        })
        .collect();
    Ruleset { sets, chains, rules }
}

fn prerouting(desired: &Desired, modes: &[(IpAddr, FailOpen)], rules: &mut Vec<Rule>) {
    let chain = Chain::Prerouting;
    if modes.iter().any(|(_, mode)| matches!(mode, FailOpen::To(_))) {
        let statements = vec![Statement::InputIsLoopback, Statement::Return];
        rules.push(Rule::new(chain, statements, "the host's own packets stay here"));
    }
    if let Some(verdict) = past_the_listener(modes) {
        let statements = vec![Statement::InputIsProof, verdict];
        rules.push(Rule::new(chain, statements, "our own questions: as if nobody listened"));
    }
    for &(address, mode) in modes {
        for protocol in Protocol::ALL {
            let verdict = match (mode, protocol) {
                (FailOpen::Off(_), _) => Statement::NoTrack,
                (_, Protocol::Udp) => Statement::Goto(Chain::DnsUdp),
                (_, Protocol::Tcp) => Statement::Goto(Chain::DnsTcp(Family::of(address))),
            };
            let statements = vec![
                Statement::Address(Side::Destination, address),
                Statement::Port(protocol, Side::Destination, desired.dns_port()),
                verdict,
            ];
            rules.push(Rule::new(chain, statements, "queries of pods"));
        }
    }
}

/// Where a query goes that is to find out what becomes of one while nobody listens; `None` where it is refused anyway.
fn past_the_listener(modes: &[(IpAddr, FailOpen)]) -> Option<Statement> {
    if modes.iter().any(|(_, mode)| matches!(mode, FailOpen::To(_))) {
        // Those for kube-proxy find no rule there, and go on as they are.
        return Some(Statement::Goto(Chain::Open));
    }
    modes.iter().any(|(_, mode)| *mode == FailOpen::KubeProxy).then_some(Statement::Accept)
}

fn output(desired: &Desired, modes: &[(IpAddr, FailOpen)], rules: &mut Vec<Rule>) {
    if modes.iter().any(|(_, mode)| *mode == FailOpen::KubeProxy) {
        let statements = vec![Statement::OutputIsProof, Statement::NoTrack];
        rules.push(Rule::new(Chain::Output, statements, "our own questions: translated where they come in"));
    }
    for &address in desired.addresses() {
        let mut untracked = |side, protocol, port, purpose| {
            let statements = vec![
                Statement::Address(side, address),
                Statement::Port(protocol, side, port),
                Statement::NoTrack,
            ];
            rules.push(Rule::new(Chain::Output, statements, purpose));
        };
        for protocol in Protocol::ALL {
            untracked(Side::Source, protocol, desired.dns_port(), "answers");
            if !desired.is_service(address) {
                untracked(Side::Destination, protocol, desired.dns_port(), "queries of the host");
            }
        }
        if let Some(port) = desired.health_port()
            && !desired.is_service(address)
        {
            untracked(Side::Destination, Protocol::Tcp, port, "health probes");
            untracked(Side::Source, Protocol::Tcp, port, "answers to health probes");
        }
    }
}

fn dns_udp(has_target: bool, rules: &mut Vec<Rule>) {
    let chain = Chain::DnsUdp;
    let mut add = |statements, purpose| rules.push(Rule::new(chain, statements, purpose));
    let listener = vec![
        Statement::SocketWildcard(false),
        Statement::SocketTransparent(false),
        Statement::NoTrack,
        Statement::Accept,
    ];
    add(listener, "somebody listens");
    if has_target {
        add(vec![Statement::Goto(Chain::Open)], "nobody listens");
    }
}

fn dns_tcp(family: Family, has_target: bool, rules: &mut Vec<Rule>) {
    let (established, new, opened) = (Chain::DnsTcp(family), Chain::NewTcp(family), Chain::OpenTcp(family));
    let mut add = |chain, statements, purpose| rules.push(Rule::new(chain, statements, purpose));
    add(established, vec![Statement::IsSyn, Statement::Goto(new)], "new connections");
    let known = vec![Statement::Opened(SetUse::Lookup, family), Statement::Goto(opened)];
    add(established, known, "opened past the listener: they stay there");
    let socket = vec![Statement::SocketTransparent(false), Statement::NoTrack, Statement::Accept];
    add(established, socket, "the listener's connections");
    if has_target {
        add(established, vec![Statement::Goto(Chain::Open)], "neither known nor ours");
    }

    let foreign = vec![Statement::SocketWildcard(true), Statement::Goto(opened)];
    add(new, foreign, "a listener on every address is not ours");
    let ours = vec![
        Statement::SocketTransparent(false),
        Statement::Opened(SetUse::Delete, family),
        Statement::NoTrack,
        Statement::Accept,
    ];
    add(new, ours, "somebody listens");
    add(new, vec![Statement::Goto(opened)], "nobody listens");

    add(opened, vec![Statement::Opened(SetUse::Update, family)], "remembered, if there is room");
    if has_target {
        add(opened, vec![Statement::Goto(Chain::Open)], "remembered or not");
    }
}

/// The whole content of our table: sets, chains and rules.
///
/// Its `Display` is a file for `nft -f` that replaces the table in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    sets: Vec<Family>,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
}

impl Ruleset {
    /// The families that have a set of connections opened past the listener.
    pub fn sets(&self) -> &[Family] {
        &self.sets
    }

    /// The chains, in the order in which they are made.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// The rules of all chains, each chain's in its order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rules of one chain, in order.
    pub fn chain(&self, chain: Chain) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.chain() == chain)
    }

    /// The ruleset with one rule left out, to show what that rule is for. An index past the end leaves out none.
    pub fn without(&self, index: usize) -> Self {
        let mut changed = self.clone();
        if index < changed.rules.len() {
            changed.rules.remove(index);
        }
        changed
    }

    /// The ruleset with two rules of one chain in each other's place, to show what their order is for. Rules of two
    /// chains, and an index past the end, change nothing.
    pub fn swapped(&self, one: usize, other: usize) -> Self {
        let mut changed = self.clone();
        if let (Some(first), Some(second)) = (self.rules.get(one), self.rules.get(other))
            && first.chain() == second.chain()
        {
            changed.rules.swap(one, other);
        }
        changed
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{")?;
        for family in &self.sets {
            let address = family.address_type();
            writeln!(f, "\tset {} {{", family.opened_set())?;
            writeln!(f, "\t\ttype {address} . inet_service . {address}; flags dynamic,timeout")?;
            writeln!(f, "\t\tsize {OPENED_SIZE}; timeout {OPENED_TIMEOUT_SECONDS}s\n\t}}")?;
        }
        for chain in &self.chains {
            writeln!(f, "\tchain {chain} {{")?;
            if let Some(hook) = chain.hook() {
                writeln!(f, "\t\ttype filter hook {hook} priority {}; policy accept;", hook.priority())?;
            }
            for rule in self.chain(*chain) {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::desired::DEFAULT_DEVICE;

    const DNS: NonZeroU16 = NonZeroU16::new(53).unwrap();
    const HEALTH: NonZeroU16 = NonZeroU16::new(8080).unwrap();

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn desired(addresses: &[&str]) -> Desired {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
        Desired::new(&addresses, DEFAULT_DEVICE, DNS, Some(HEALTH)).unwrap()
    }

    #[test]
    fn writes_the_rules_in_nfts_language() {
        let text = desired(&["169.254.20.10"]).ruleset().to_string();
        let expected = "\
table inet nodestub
delete table inet nodestub
table inet nodestub {
\tchain prerouting {
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tip daddr 169.254.20.10 udp dport 53 notrack comment \"queries of pods\"
\t\tip daddr 169.254.20.10 tcp dport 53 notrack comment \"queries of pods\"
\t}
\tchain output {
\t\ttype filter hook output priority -300; policy accept;
\t\tip saddr 169.254.20.10 udp sport 53 notrack comment \"answers\"
\t\tip daddr 169.254.20.10 udp dport 53 notrack comment \"queries of the host\"
\t\tip saddr 169.254.20.10 tcp sport 53 notrack comment \"answers\"
\t\tip daddr 169.254.20.10 tcp dport 53 notrack comment \"queries of the host\"
\t\tip daddr 169.254.20.10 tcp dport 8080 notrack comment \"health probes\"
\t\tip saddr 169.254.20.10 tcp sport 8080 notrack comment \"answers to health probes\"
\t}
}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn writes_fail_open_in_nfts_language() {
        let wish = Desired::new(&[ip("169.254.20.10")], DEFAULT_DEVICE, DNS, None).unwrap();
        let wish = wish.with_fallback(ip("169.254.20.10"), ip("10.96.0.10")).unwrap();
        let text = wish.ruleset().to_string();
        let expected = include_str!("rules/failopen.nft");
        assert_eq!(text, expected);
    }

    #[test]
    fn makes_eight_rules_for_each_address_and_none_twice() {
        let rules = desired(&["169.254.20.10", "fd00::a", "169.254.20.10"]).ruleset();
        assert_eq!(rules.rules().len(), 16);
        for (index, rule) in rules.rules().iter().enumerate() {
            assert!(!rules.without(index).rules().contains(rule), "{rule}");
        }
    }

    #[test]
    fn leaves_the_health_rules_out_without_a_health_port() {
        let desired = Desired::new(&[ip("fd00::a")], DEFAULT_DEVICE, DNS, None).unwrap();
        assert_eq!(desired.ruleset().rules().len(), 6);
    }

    #[test]
    fn makes_only_chains_that_a_rule_leads_to() {
        let local = ip("169.254.20.10");
        let service = ip("10.96.0.10");
        let plain = desired(&["169.254.20.10"]);
        let with_target = plain.clone().with_fallback(local, service).unwrap();
        let intercepting = desired(&["10.96.0.10"]).intercept(&[service]).unwrap();
        for (wish, chains) in [(plain, 2), (with_target, 8), (intercepting, 6)] {
            let rules = wish.ruleset();
            assert_eq!(rules.chains().len(), chains, "{rules}");
            for chain in rules.chains() {
                let led_to =
                    rules.rules().iter().any(|rule| rule.statements().contains(&Statement::Goto(*chain)));
                assert!(chain.hook().is_some() || led_to, "{chain}");
                assert!(rules.chain(*chain).count() > 0, "{chain}");
            }
        }
    }

    #[test]
    fn gives_each_address_a_zone_of_its_own() {
        let wish = desired(&["169.254.20.10", "169.254.20.11"]);
        let wish = wish.with_fallback(ip("169.254.20.10"), ip("10.96.0.10")).unwrap();
        let wish = wish.with_fallback(ip("169.254.20.11"), ip("10.96.0.10")).unwrap();
        let rules = wish.ruleset();
        for chain in [Chain::Open, Chain::Postrouting] {
            let mut zones: Vec<u16> = rules
                .chain(chain)
                .flat_map(Rule::statements)
                .filter_map(|statement| match statement {
                    Statement::SetZone(zone) | Statement::Zone(zone) => Some(*zone),
                    _ => None,
                })
                .collect();
            zones.dedup();
            assert_eq!(zones, [FIRST_ZONE, FIRST_ZONE + 1], "{chain}");
        }
    }

    #[test]
    fn swaps_rules_within_a_chain_only() {
        let rules = desired(&["169.254.20.10"]).ruleset();
        assert_eq!(rules.swapped(0, 2), rules);
        assert_eq!(rules.swapped(0, 99), rules);
        let swapped = rules.swapped(0, 1);
        assert_ne!(swapped, rules);
        assert_eq!(swapped.swapped(0, 1), rules);
    }
}
