//! The lines that let our packets pass: each to be run as it stands, as root on the node.
//!
//! An accept at the head of the very chain that drops is all it takes: it ends that chain for the packet, and others go
//! on. The exception is firewalld, whose table nobody else may change: it takes a policy of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::model::{BaseChain, Hook, Rule, Scope, World};
use super::packet::Packet;

/// Name of our firewalld policy.
const POLICY: &str = "nodestub";

/// Who keeps a chain, and so by what means it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// nft, or a program that speaks to nf_tables itself.
    Nft,
    /// iptables or ip6tables over nf_tables.
    IptablesNft,
    /// iptables-legacy or ip6tables-legacy.
    IptablesLegacy,
    /// firewalld.
    Firewalld,
}

/// Who keeps this chain.
pub(super) fn keeper(base: &BaseChain, world: &World) -> Keeper {
    let table = &base.id.table;
    if table.is_legacy {
        return Keeper::IptablesLegacy;
    }
    if table.scope == Scope::Inet && table.name == "firewalld" {
        return Keeper::Firewalld;
    }
    let priority = match table.name.as_str() {
        "raw" => -300,
        "mangle" => -150,
        "filter" => 0,
        "security" => 50,
        _ => return Keeper::Nft,
    };
    let name = match base.hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Input => "INPUT",
        Hook::Output => "OUTPUT",
        Hook::Postrouting => "POSTROUTING",
    };
    let rules: &[Rule] = world.bodies.get(&base.id).map_or(&[], Vec::as_slice);
    let is_iptables = table.scope != Scope::Inet
        && base.id.name == name
        && base.priority == priority
        && rules.iter().all(|rule| rule.is_of_iptables);
    if is_iptables { Keeper::IptablesNft } else { Keeper::Nft }
}

/// What a rule must say to have a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    is_answer: bool,
    address: IpAddr,
    is_tcp: bool,
    port: u16,
}

/// The lines for a chain. `None`: its names are such that a line with them could not be run as it stands.
pub(super) fn lines<'a>(
    keeper: Keeper,
    base: &BaseChain,
    packets: impl Iterator<Item = &'a Packet>,
) -> Option<Vec<String>> {
    let flows: BTreeSet<Flow> = packets
        .map(|packet| Flow {
            is_answer: packet.kind.is_answer(),
            address: packet.address,
            is_tcp: packet.is_tcp,
            port: packet.port,
        })
        .collect();
    let (table, chain) = (&base.id.table, &base.id.name);
    if !is_plain(&table.name) || !is_plain(chain) {
        return None;
    }
    let flows = flows.iter();
    Some(match keeper {
        Keeper::Nft => flows
            .map(|flow| {
                let (family, transport) = (flow.family("ip", "ip6"), flow.transport());
                let (address, port) = if flow.is_answer { ("saddr", "sport") } else { ("daddr", "dport") };
                format!(
                    "nft insert rule {} {} {chain} {family} {address} {} {transport} {port} {} accept",
                    table.scope, table.name, flow.address, flow.port
                )
            })
            .collect(),
        Keeper::IptablesNft | Keeper::IptablesLegacy => flows
            .map(|flow| {
                let program = flow.family("iptables", "ip6tables");
                let variant = if keeper == Keeper::IptablesLegacy { "legacy" } else { "nft" };
                let (address, port) = if flow.is_answer { ("-s", "--sport") } else { ("-d", "--dport") };
                format!(
                    "{program}-{variant} -w -t {} -I {chain} {address} {} -p {} {port} {} -j ACCEPT",
                    table.name,
                    flow.address,
                    flow.transport(),
                    flow.port
                )
            })
            .collect(),
        Keeper::Firewalld => firewalld(base.hook, flows),
    })
}

/// A policy from (or to) every zone to (or from) the node itself; without a target, what it does not accept goes on to
/// the zones. firewalld 0.9 or newer.
fn firewalld<'a>(hook: Hook, flows: impl Iterator<Item = &'a Flow>) -> Vec<String> {
    let comes_in = matches!(hook, Hook::Prerouting | Hook::Input);
    let (name, ingress, egress) = if comes_in {
        (format!("{POLICY}-in"), "ANY", "HOST")
    } else {
        (format!("{POLICY}-out"), "HOST", "ANY")
    };
    let mut lines = vec![
        format!("firewall-cmd --permanent --new-policy {name}"),
        format!("firewall-cmd --permanent --policy {name} --add-ingress-zone {ingress}"),
        format!("firewall-cmd --permanent --policy {name} --add-egress-zone {egress}"),
    ];
    for flow in flows {
        let (family, transport, port) = (flow.family("ipv4", "ipv6"), flow.transport(), flow.port);
        let (side, kind) = if flow.is_answer { ("source", "source-port") } else { ("destination", "port") };
        lines.push(format!(
            "firewall-cmd --permanent --policy {name} --add-rich-rule 'rule family=\"{family}\" {side} \
             address=\"{}\" {kind} port=\"{port}\" protocol=\"{transport}\" accept'",
            flow.address
        ));
    }
    lines.push("firewall-cmd --reload".to_owned());
    lines
}

impl Flow {
    fn family(&self, v4: &'static str, v6: &'static str) -> &'static str {
        if self.address.is_ipv4() { v4 } else { v6 }
    }

    fn transport(&self) -> &'static str {
        if self.is_tcp { "tcp" } else { "udp" }
    }
}

/// Whether a name can stand in a line for a shell: anybody who may make a chain chose it.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && !name.starts_with('-') && name.bytes().all(plain)
}
