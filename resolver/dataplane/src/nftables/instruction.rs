//! A rule as the few instructions of the kernel that it consists of, to netlink and back.

use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    Cmp, DataAttribute, ExpressionAttribute, Expressions, ListAttribute, Meta, MetaKey, Operator, Payload,
    Register,
};

use crate::desired::{Protocol, Rule, Side};

/// `NFT_PAYLOAD_NETWORK_HEADER`.
const BASE_NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const BASE_TRANSPORT: u32 = 2;

/// One expression of a rule. All loads go to register 1, and every comparison is for equality with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    /// `meta nfproto` (IPv4 or IPv6).
    LoadFamily,
    /// `meta l4proto`.
    LoadProtocol,
    /// Octets of a header.
    LoadHeader { base: u32, offset: u32, length: u32 },
    /// Go on only when the register holds these octets.
    Equals(Vec<u8>),
    /// Do not track this packet.
    NoTrack,
    /// Something that we never send, as it was read.
    Other(String),
}

/// What nft itself makes of the rule's text: family, address, protocol, port, notrack.
pub(super) fn instructions(rule: &Rule) -> Vec<Instruction> {
    // Offsets of RFC 791, RFC 8200, and of the ports in UDP (RFC 768) and TCP (RFC 9293) alike.
    let (family, octets, offset) = match (rule.address, rule.side) {
        (IpAddr::V4(address), Side::Source) => (libc::NFPROTO_IPV4, address.octets().to_vec(), 12),
        (IpAddr::V4(address), Side::Destination) => (libc::NFPROTO_IPV4, address.octets().to_vec(), 16),
        (IpAddr::V6(address), Side::Source) => (libc::NFPROTO_IPV6, address.octets().to_vec(), 8),
        (IpAddr::V6(address), Side::Destination) => (libc::NFPROTO_IPV6, address.octets().to_vec(), 24),
    };
    let length = if rule.address.is_ipv4() { 4 } else { 16 };
    let protocol = match rule.protocol {
        Protocol::Udp => libc::IPPROTO_UDP,
        Protocol::Tcp => libc::IPPROTO_TCP,
    };
    let port_offset = match rule.side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    vec![
        Instruction::LoadFamily,
        Instruction::Equals(lowest_octet(family)),
        Instruction::LoadHeader { base: BASE_NETWORK, offset, length },
        Instruction::Equals(octets),
        Instruction::LoadProtocol,
        Instruction::Equals(lowest_octet(protocol)),
        Instruction::LoadHeader { base: BASE_TRANSPORT, offset: port_offset, length: 2 },
        Instruction::Equals(rule.port.get().to_be_bytes().to_vec()),
        Instruction::NoTrack,
    ]
}

/// Family and protocol numbers are single octets in a register.
fn lowest_octet(number: libc::c_int) -> Vec<u8> {
    let [.., lowest] = number.to_be_bytes();
    vec![lowest]
}

pub(super) fn encode(instruction: &Instruction) -> ListAttribute<ExpressionAttribute> {
    let load_meta =
        |key| Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into();
    match instruction {
        Instruction::LoadFamily => load_meta(MetaKey::Nfproto),
        Instruction::LoadProtocol => load_meta(MetaKey::L4Proto),
        Instruction::LoadHeader { base, offset, length } => Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(*base),
            Payload::Offset(*offset),
            Payload::Len(*length),
        ])
        .into(),
        Instruction::Equals(octets) => Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(Operator::Equal),
            Cmp::Data(DataAttribute::Value(octets.clone())),
        ])
        .into(),
        // Without data: it takes no argument.
        Instruction::NoTrack => ListAttribute::Element(vec![ExpressionAttribute::Name("notrack".to_owned())]),
        Instruction::Other(name) => ListAttribute::Element(vec![ExpressionAttribute::Name(name.clone())]),
    }
}

pub(super) fn decode(expression: &ListAttribute<ExpressionAttribute>) -> Instruction {
    let ListAttribute::Element(attributes) = expression else {
        return Instruction::Other(format!("{expression:?}"));
    };
    let data = attributes.iter().find_map(|attribute| match attribute {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    });
    let known = match data {
        Some(Expressions::Meta(parts)) => decode_meta(parts),
        Some(Expressions::Payload(parts)) => decode_payload(parts),
        Some(Expressions::Cmp(parts)) => decode_cmp(parts),
        _ => {
            let notrack = ExpressionAttribute::Name("notrack".to_owned());
            attributes.contains(&notrack).then_some(Instruction::NoTrack)
        }
    };
    known.unwrap_or_else(|| Instruction::Other(format!("{attributes:?}")))
}

fn decode_meta(parts: &[Meta]) -> Option<Instruction> {
    if !parts.contains(&Meta::DestinationRegister(Register::Reg1)) {
        return None;
    }
    parts.iter().find_map(|part| match part {
        Meta::Key(MetaKey::Nfproto) => Some(Instruction::LoadFamily),
        Meta::Key(MetaKey::L4Proto) => Some(Instruction::LoadProtocol),
        _ => None,
    })
}

fn decode_payload(parts: &[Payload]) -> Option<Instruction> {
    let (mut base, mut offset, mut length, mut into_register_1) = (None, None, None, false);
    for part in parts {
        match part {
            Payload::DestinationRegister(register) => into_register_1 = *register == Register::Reg1,
            Payload::Base(value) => base = Some(*value),
            Payload::Offset(value) => offset = Some(*value),
            Payload::Len(value) => length = Some(*value),
            _ => {}
        }
    }
    into_register_1.then_some(Instruction::LoadHeader { base: base?, offset: offset?, length: length? })
}

fn decode_cmp(parts: &[Cmp]) -> Option<Instruction> {
    if !parts.contains(&Cmp::SourceRegister(Register::Reg1)) || !parts.contains(&Cmp::Op(Operator::Equal)) {
        return None;
    }
    parts.iter().find_map(|part| match part {
        Cmp::Data(DataAttribute::Value(octets)) => Some(Instruction::Equals(octets.clone())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::Desired;

    #[test]
    fn reads_back_every_instruction_that_it_writes() {
        let addresses = ["169.254.20.10".parse().unwrap(), "fd00::a".parse().unwrap()];
        let desired =
            Desired::new(&addresses, "nodestub", NonZeroU16::new(53).unwrap(), NonZeroU16::new(8080))
                .unwrap();
        for rule in desired.ruleset().rules() {
            let decoded: Vec<_> = instructions(rule).iter().map(|one| decode(&encode(one))).collect();
            assert_eq!(decoded, instructions(rule), "{rule}");
        }
    }

    #[test]
    fn takes_no_other_register_key_or_operator_for_ours() {
        let foreign = [
            Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::DestinationRegister(Register::Reg1)]),
            Expressions::Meta(vec![Meta::Key(MetaKey::L4Proto), Meta::DestinationRegister(Register::Reg2)]),
            Expressions::Cmp(vec![
                Cmp::SourceRegister(Register::Reg1),
                Cmp::Op(Operator::NotEqual),
                Cmp::Data(DataAttribute::Value(vec![17])),
            ]),
            Expressions::Payload(vec![Payload::DestinationRegister(Register::Reg1), Payload::Base(1)]),
        ];
        for expression in foreign {
            assert!(matches!(decode(&expression.clone().into()), Instruction::Other(_)), "{expression:?}");
        }
    }
}
