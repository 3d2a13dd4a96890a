//! Destination NAT: what kube-proxy does to a packet for a service, without kube-proxy.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber, Meta,
    MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute,
    TableMessage,
};

use crate::netfilter::transact;
use crate::{Error, Netns};

/// The table that [`translate`] makes.
pub const NAT_TABLE: &str = "lab_nat";
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY_NAT_DST: i32 = -100;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Sends packets for the first address of each pair to the second, whatever their port: those that come in and those of
/// the namespace's own processes. Sources stay as they are (no masquerade). Pairs are of one family each.
///
/// The table is made anew by each call.
pub fn translate(netns: &Netns, pairs: &[(IpAddr, IpAddr)]) -> Result<(), Error> {
    let table = || TableMessage { attributes: vec![TableAttribute::Name(NAT_TABLE.to_owned())] };
    let mut messages = vec![
        NfTablesMessage::NewTable(table()),
        NfTablesMessage::DeleteTable(table()),
        NfTablesMessage::NewTable(table()),
    ];
    for (chain, hook) in [("prerouting", InetHookNumber::PreRouting), ("output", InetHookNumber::LocalOut)] {
        messages.push(NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(NAT_TABLE.to_owned()),
                ChainAttribute::Name(chain.to_owned()),
                ChainAttribute::Type("nat".to_owned()),
                ChainAttribute::Hook(vec![
                    Hook::Number(hook.into()),
                    Hook::Priority(u32::from_ne_bytes(PRIORITY_NAT_DST.to_ne_bytes())),
                ]),
            ],
        }));
        for (from, to) in pairs {
            messages.push(NfTablesMessage::NewRule(RuleMessage {
                attributes: vec![
                    RuleAttribute::Table(NAT_TABLE.to_owned()),
                    RuleAttribute::Chain(chain.to_owned()),
                    RuleAttribute::Expressions(
                        destination_nat(*from, *to).into_iter().map(Into::into).collect(),
                    ),
                ],
            }));
        }
    }
    netns.run(|| transact(NetfilterProtoFamily::Inet, messages))?
}

/// `ip daddr FROM dnat ip to TO`, or the same for IPv6.
fn destination_nat(from: IpAddr, to: IpAddr) -> Vec<Expressions> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (family, offset, length) =
        if from.is_ipv4() { (NFPROTO_IPV4, 16, 4) } else { (NFPROTO_IPV6, 24, 16) };
    let equals = |octets| {
        Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(Operator::Equal),
            Cmp::Data(DataAttribute::Value(octets)),
        ])
    };
    // NFTA_NAT_TYPE (1) = NFT_NAT_DNAT (1), NFTA_NAT_FAMILY (2), NFTA_NAT_REG_ADDR_MIN (3) = register 1.
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    vec![
        Expressions::Meta(vec![Meta::Key(MetaKey::Nfproto), Meta::DestinationRegister(Register::Reg1)]),
        equals(vec![family]),
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(1),
            Payload::Offset(offset),
            Payload::Len(length),
        ]),
        equals(octets(from)),
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(octets(to))),
        ]),
        Expressions::Other {
            expression_type: "nat".to_owned(),
            attributes: vec![number(1, 1), number(2, u32::from(family)), number(3, 1)],
        },
    ]
}
