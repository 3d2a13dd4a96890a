//! A rule as the few instructions of the kernel that it consists of, to netlink and back.
//!
//! What nft makes of the rule's text, instruction by instruction, so that `nft list` shows our text again. A statement
//! that reads a header first makes sure of the family, and of the protocol, unless one before it did.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChecksumFlags, ChecksumType, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate,
    ListAttribute, Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::desired::{ASK_DEVICE, HEAR_DEVICE};
use crate::rules::{Family, Protocol, Rule, SetUse, Side, Statement};

/// `NFT_PAYLOAD_NETWORK_HEADER`.
const BASE_NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const BASE_TRANSPORT: u32 = 2;
/// Where IPv4 has its header checksum (RFC 791). IPv6 has none.
const IPV4_CHECKSUM_OFFSET: u32 = 10;
/// TCP's octet of flags (RFC 9293).
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// Linux's `LOOPBACK_IFINDEX`: `lo` is the first device of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Linux's `IFNAMSIZ`.
const DEVICE_NAME_OCTETS: usize = 16;
/// `NF_ACCEPT`.
const NF_ACCEPT: u32 = 1;

/// The register of 16 octets in which a value is loaded, compared and written from.
const REGISTER_1: u32 = 1;
/// Registers of four octets lie over those of sixteen: `NFT_REG32_00` is the first quarter of register 1.
const FIRST_QUARTER: u32 = 8;
const QUARTER_OCTETS: u32 = 4;

// Attributes and values of expressions that netlink-packet-netfilter has no type for: linux/netfilter/nf_tables.h.
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const NFTA_CT_SREG: u16 = 4;
const NFT_CT_DIRECTION: u32 = 1;
const NFT_CT_ZONE: u32 = 17;
const NFTA_SOCKET_KEY: u16 = 1;
const NFTA_SOCKET_DREG: u16 = 2;
const NFT_SOCKET_TRANSPARENT: u32 = 0;
const NFT_SOCKET_WILDCARD: u32 = 2;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFTA_DYNSET_FLAGS: u16 = 9;
const NFT_DYNSET_OP_UPDATE: u32 = 1;
const NFT_DYNSET_OP_DELETE: u32 = 2;
/// `IP_CT_DIR_ORIGINAL` and `IP_CT_DIR_REPLY`.
const DIRECTION_ORIGINAL: u8 = 0;
const DIRECTION_REPLY: u8 = 1;

/// One expression of a rule. Where no register is named, it is register 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instruction {
    /// `meta nfproto` (IPv4 or IPv6).
    LoadFamily,
    /// `meta l4proto`.
    LoadProtocol,
    /// `meta iif`: the index of the device that the packet came in by.
    LoadInputDevice,
    /// `meta iifname`: the name of that device.
    LoadInputName,
    /// `meta oifname`: the name of the device that the packet leaves by.
    LoadOutputName,
    /// Octets of a header.
    LoadHeader { base: u32, offset: u32, length: u32, register: u32 },
    /// Something of the socket that is there for the packet; without one the rule ends.
    LoadSocket { key: u32 },
    /// Something of the packet's connection.
    LoadConntrack { key: u32, direction: Option<u8> },
    /// These octets.
    LoadConstant(Vec<u8>),
    /// Keeps the bits that are set here.
    Mask(Vec<u8>),
    /// Go on only when the register holds these octets.
    Equals(Vec<u8>),
    /// Go on only when the set holds what the registers hold.
    Lookup { set: String },
    /// Changes the set by what the registers hold.
    ChangeSet { set: String, operation: u32 },
    /// Sets something of the packet's connection from the register.
    SetConntrack { key: u32, direction: Option<u8> },
    /// Writes the register to the network header and corrects the checksums: that of the header, where one is at this
    /// offset, and that of the transport, which covers the addresses.
    WriteHeader { offset: u32, length: u32, checksum_offset: Option<u32> },
    /// Do not track this packet.
    NoTrack,
    /// The end, or on in another chain.
    Verdict { code: u32, chain: Option<String> },
    /// Something that we never send, as it was read.
    Other(String),
}

/// What nft itself makes of the rule's text.
pub(super) fn instructions(rule: &Rule) -> Vec<Instruction> {
    let mut program = Program::default();
    for statement in rule.statements() {
        program.add(*statement);
    }
    program.instructions
}

#[derive(Default)]
struct Program {
    instructions: Vec<Instruction>,
    family_is_known: bool,
    protocol_is_known: bool,
}

impl Program {
    fn add(&mut self, statement: Statement) {
        match statement {
            Statement::InputIsLoopback => {
                self.push(Instruction::LoadInputDevice);
                self.push(Instruction::Equals(LOOPBACK_INDEX.to_ne_bytes().to_vec()));
            }
            Statement::InputIsProof => {
                self.push(Instruction::LoadInputName);
                self.push(Instruction::Equals(device_name(HEAR_DEVICE)));
            }
            Statement::OutputIsProof => {
                self.push(Instruction::LoadOutputName);
                self.push(Instruction::Equals(device_name(ASK_DEVICE)));
            }
            Statement::Address(side, address) => {
                let family = Family::of(address);
                self.need_family(family);
                self.load_address(family, side, REGISTER_1);
                self.push(Instruction::Equals(octets(address)));
            }
            Statement::Port(protocol, side, port) => {
                self.need_protocol(protocol);
                self.load_port(side, REGISTER_1);
                self.push(Instruction::Equals(port.get().to_be_bytes().to_vec()));
            }
            Statement::IsSyn => {
                self.need_protocol(Protocol::Tcp);
                self.push(Instruction::LoadHeader {
                    base: BASE_TRANSPORT,
                    offset: TCP_FLAGS_OFFSET,
                    length: 1,
                    register: REGISTER_1,
                });
                self.push(Instruction::Mask(vec![TCP_SYN | TCP_ACK]));
                self.push(Instruction::Equals(vec![TCP_SYN]));
            }
            Statement::SocketWildcard(is) => {
                self.push(Instruction::LoadSocket { key: NFT_SOCKET_WILDCARD });
                self.push(Instruction::Equals(vec![u8::from(is)]));
            }
            Statement::SocketTransparent(is) => {
                self.push(Instruction::LoadSocket { key: NFT_SOCKET_TRANSPARENT });
                self.push(Instruction::Equals(vec![u8::from(is)]));
            }
            Statement::Opened(how, family) => self.opened(how, family),
            Statement::Zone(zone) => {
                let direction = Some(DIRECTION_ORIGINAL);
                self.push(Instruction::LoadConntrack { key: NFT_CT_ZONE, direction });
                self.push(Instruction::Equals(zone.to_ne_bytes().to_vec()));
            }
            Statement::IsReply => {
                self.push(Instruction::LoadConntrack { key: NFT_CT_DIRECTION, direction: None });
                self.push(Instruction::Equals(vec![DIRECTION_REPLY]));
            }
            Statement::SetZone(zone) => {
                self.push(Instruction::LoadConstant(zone.to_ne_bytes().to_vec()));
                let direction = Some(DIRECTION_ORIGINAL);
                self.push(Instruction::SetConntrack { key: NFT_CT_ZONE, direction });
            }
            Statement::SetAddress(side, address) => {
                let family = Family::of(address);
                self.need_family(family);
                self.push(Instruction::LoadConstant(octets(address)));
                self.push(Instruction::WriteHeader {
                    offset: address_offset(family, side),
                    length: address_length(family),
                    checksum_offset: (family == Family::V4).then_some(IPV4_CHECKSUM_OFFSET),
                });
            }
            Statement::NoTrack => self.push(Instruction::NoTrack),
            Statement::Accept => self.push(Instruction::Verdict { code: NF_ACCEPT, chain: None }),
            Statement::Return => {
                self.push(Instruction::Verdict { code: Verdict::Return.into(), chain: None });
            }
            Statement::Goto(chain) => {
                let chain = Some(chain.name().to_owned());
                self.push(Instruction::Verdict { code: Verdict::Goto.into(), chain });
            }
        }
    }

    /// Client address, client port and address asked, side by side.
    fn opened(&mut self, how: SetUse, family: Family) {
        self.need_family(family);
        self.need_protocol(Protocol::Tcp);
        let port_quarter = address_length(family).div_ceil(QUARTER_OCTETS);
        self.load_address(family, Side::Source, REGISTER_1);
        self.load_port(Side::Source, register_of_quarter(port_quarter));
        self.load_address(family, Side::Destination, register_of_quarter(port_quarter.saturating_add(1)));
        let set = family.opened_set().to_owned();
        self.push(match how {
            SetUse::Lookup => Instruction::Lookup { set },
            SetUse::Update => Instruction::ChangeSet { set, operation: NFT_DYNSET_OP_UPDATE },
            SetUse::Delete => Instruction::ChangeSet { set, operation: NFT_DYNSET_OP_DELETE },
        });
    }

    fn need_family(&mut self, family: Family) {
        if !self.family_is_known {
            self.family_is_known = true;
            let number = match family {
                Family::V4 => libc::NFPROTO_IPV4,
                Family::V6 => libc::NFPROTO_IPV6,
            };
            self.push(Instruction::LoadFamily);
            self.push(Instruction::Equals(lowest_octet(number)));
        }
    }

    fn need_protocol(&mut self, protocol: Protocol) {
        if !self.protocol_is_known {
            self.protocol_is_known = true;
            let number = match protocol {
                Protocol::Udp => libc::IPPROTO_UDP,
                Protocol::Tcp => libc::IPPROTO_TCP,
            };
            self.push(Instruction::LoadProtocol);
            self.push(Instruction::Equals(lowest_octet(number)));
        }
    }

    fn load_address(&mut self, family: Family, side: Side, register: u32) {
        let (offset, length) = (address_offset(family, side), address_length(family));
        self.push(Instruction::LoadHeader { base: BASE_NETWORK, offset, length, register });
    }

    fn load_port(&mut self, side: Side, register: u32) {
        // In UDP (RFC 768) and TCP (RFC 9293) alike.
        let offset = match side {
            Side::Source => 0,
            Side::Destination => 2,
        };
        self.push(Instruction::LoadHeader { base: BASE_TRANSPORT, offset, length: 2, register });
    }

    fn push(&mut self, instruction: Instruction) {
        self.instructions.push(instruction);
    }
}

/// RFC 791 and RFC 8200.
fn address_offset(family: Family, side: Side) -> u32 {
    match (family, side) {
        (Family::V4, Side::Source) => 12,
        (Family::V4, Side::Destination) => 16,
        (Family::V6, Side::Source) => 8,
        (Family::V6, Side::Destination) => 24,
    }
}

/// In octets.
fn address_length(family: Family) -> u32 {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A device's name as the kernel loads it: in sixteen octets, the rest zero.
fn device_name(name: &str) -> Vec<u8> {
    let mut octets = name.as_bytes().to_vec();
    octets.resize(DEVICE_NAME_OCTETS, 0);
    octets
}

/// A quarter by the name that the kernel gives it back with: where a whole register starts, the register.
fn register_of_quarter(quarter: u32) -> u32 {
    if quarter.is_multiple_of(QUARTER_OCTETS) {
        REGISTER_1.saturating_add(quarter / QUARTER_OCTETS)
    } else {
        FIRST_QUARTER.saturating_add(quarter)
    }
}

/// Family and protocol numbers are single octets in a register.
fn lowest_octet(number: libc::c_int) -> Vec<u8> {
    let [.., lowest] = number.to_be_bytes();
    vec![lowest]
}

pub(super) fn encode(instruction: &Instruction) -> ListAttribute<ExpressionAttribute> {
    let load_meta =
        |key| Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into();
    let value = |octets: &[u8]| DataAttribute::Value(octets.to_vec());
    match instruction {
        Instruction::LoadFamily => load_meta(MetaKey::Nfproto),
        Instruction::LoadProtocol => load_meta(MetaKey::L4Proto),
        Instruction::LoadInputDevice => load_meta(MetaKey::Iif),
        Instruction::LoadInputName => load_meta(MetaKey::Iifname),
        Instruction::LoadOutputName => load_meta(MetaKey::Oifname),
        Instruction::LoadHeader { base, offset, length, register } => Expressions::Payload(vec![
            Payload::DestinationRegister(Register::from(*register)),
            Payload::Base(*base),
            Payload::Offset(*offset),
            Payload::Len(*length),
        ])
        .into(),
        Instruction::LoadSocket { key } => {
            other("socket", vec![number(NFTA_SOCKET_KEY, *key), number(NFTA_SOCKET_DREG, REGISTER_1)])
        }
        Instruction::LoadConntrack { key, direction } => {
            let mut attributes = vec![number(NFTA_CT_KEY, *key), number(NFTA_CT_DREG, REGISTER_1)];
            attributes.extend(direction.map(|direction| DefaultNla::new(NFTA_CT_DIRECTION, vec![direction])));
            other("ct", attributes)
        }
        Instruction::LoadConstant(octets) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(value(octets)),
        ])
        .into(),
        Instruction::Mask(mask) => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ])
        .into(),
        Instruction::Equals(octets) => Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(Operator::Equal),
            Cmp::Data(value(octets)),
        ])
        .into(),
        Instruction::Lookup { set } => {
            Expressions::Lookup(vec![Lookup::Set(set.clone()), Lookup::SourceRegister(Register::Reg1)]).into()
        }
        Instruction::ChangeSet { set, operation } => {
            let mut name = set.clone().into_bytes();
            name.push(0);
            let attributes = vec![
                DefaultNla::new(NFTA_DYNSET_SET_NAME, name),
                number(NFTA_DYNSET_OP, *operation),
                number(NFTA_DYNSET_SREG_KEY, REGISTER_1),
            ];
            other("dynset", attributes)
        }
        Instruction::SetConntrack { key, direction } => {
            let mut attributes = vec![number(NFTA_CT_KEY, *key), number(NFTA_CT_SREG, REGISTER_1)];
            attributes.extend(direction.map(|direction| DefaultNla::new(NFTA_CT_DIRECTION, vec![direction])));
            other("ct", attributes)
        }
        Instruction::WriteHeader { offset, length, checksum_offset } => Expressions::Payload(vec![
            Payload::SourceRegister(Register::Reg1),
            Payload::Base(BASE_NETWORK),
            Payload::Offset(*offset),
            Payload::Len(*length),
            Payload::CsumType(checksum_offset.map_or(ChecksumType::None, |_| ChecksumType::Inet)),
            Payload::CsumOffset(checksum_offset.unwrap_or_default()),
            Payload::CsumFlags(ChecksumFlags::L4PseudoHeader),
        ])
        .into(),
        // Without data: it takes no argument.
        Instruction::NoTrack => ListAttribute::Element(vec![ExpressionAttribute::Name("notrack".to_owned())]),
        Instruction::Verdict { code, chain } => {
            let mut verdict = vec![VerdictAttribute::Code(Verdict::from(*code))];
            verdict.extend(chain.clone().map(VerdictAttribute::Chain));
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Verdict),
                Immediate::Data(DataAttribute::Verdict(verdict)),
            ])
            .into()
        }
        Instruction::Other(name) => ListAttribute::Element(vec![ExpressionAttribute::Name(name.clone())]),
    }
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> ListAttribute<ExpressionAttribute> {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

/// A number as nf_tables has it: 32 bits in network order.
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
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
        Some(Expressions::Bitwise(parts)) => decode_bitwise(parts),
        Some(Expressions::Immediate(parts)) => decode_immediate(parts),
        Some(Expressions::Lookup(parts)) => decode_lookup(parts),
        Some(Expressions::Other { expression_type, attributes }) => match expression_type.as_str() {
            "ct" => decode_conntrack(attributes),
            "socket" => decode_socket(attributes),
            "dynset" => decode_dynset(attributes),
            "notrack" => Some(Instruction::NoTrack),
            _ => None,
        },
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
        Meta::Key(MetaKey::Iif) => Some(Instruction::LoadInputDevice),
        Meta::Key(MetaKey::Iifname) => Some(Instruction::LoadInputName),
        Meta::Key(MetaKey::Oifname) => Some(Instruction::LoadOutputName),
        _ => None,
    })
}

fn decode_payload(parts: &[Payload]) -> Option<Instruction> {
    let (mut base, mut offset, mut length) = (None, None, None);
    let (mut into, mut from) = (None, None);
    let (mut checksum_type, mut checksum_offset, mut checksum_flags) = (None, None, None);
    for part in parts {
        match part {
            Payload::DestinationRegister(register) => into = Some(u32::from(*register)),
            Payload::SourceRegister(register) => from = Some(*register),
            Payload::Base(value) => base = Some(*value),
            Payload::Offset(value) => offset = Some(*value),
            Payload::Len(value) => length = Some(*value),
            Payload::CsumType(value) => checksum_type = Some(*value),
            Payload::CsumOffset(value) => checksum_offset = Some(*value),
            Payload::CsumFlags(value) => checksum_flags = Some(*value),
            _ => return None,
        }
    }
    let (offset, length) = (offset?, length?);
    match (into, from) {
        (Some(register), None) => Some(Instruction::LoadHeader { base: base?, offset, length, register }),
        (None, Some(Register::Reg1))
            if base == Some(BASE_NETWORK) && checksum_flags == Some(ChecksumFlags::L4PseudoHeader) =>
        {
            let checksum_offset = match (checksum_type?, checksum_offset) {
                (ChecksumType::Inet, Some(offset)) => Some(offset),
                (ChecksumType::None, None | Some(0)) => None,
                _ => return None,
            };
            Some(Instruction::WriteHeader { offset, length, checksum_offset })
        }
        _ => None,
    }
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

fn decode_bitwise(parts: &[Bitwise]) -> Option<Instruction> {
    let (mut mask, mut xor) = (None, None);
    let (mut from_register_1, mut into_register_1) = (false, false);
    for part in parts {
        match part {
            Bitwise::SourceRegister(register) => from_register_1 = *register == Register::Reg1,
            Bitwise::DestinationRegister(register) => into_register_1 = *register == Register::Reg1,
            Bitwise::Mask(DataAttribute::Value(octets)) => mask = Some(octets.clone()),
            Bitwise::Xor(DataAttribute::Value(octets)) => xor = Some(octets),
            // The length is that of the mask; operation 0 is the one with a mask.
            Bitwise::Length(_) | Bitwise::Op(0) => {}
            _ => return None,
        }
    }
    let keeps_bits = xor?.iter().all(|octet| *octet == 0);
    (from_register_1 && into_register_1 && keeps_bits).then_some(Instruction::Mask(mask?))
}

fn decode_immediate(parts: &[Immediate]) -> Option<Instruction> {
    let register = parts.iter().find_map(|part| match part {
        Immediate::DestinationRegister(register) => Some(*register),
        _ => None,
    })?;
    let data = parts.iter().find_map(|part| match part {
        Immediate::Data(data) => Some(data),
        _ => None,
    })?;
    match (register, data) {
        (Register::Reg1, DataAttribute::Value(octets)) => Some(Instruction::LoadConstant(octets.clone())),
        (Register::Verdict, DataAttribute::Verdict(parts)) => {
            let code = parts.iter().find_map(|part| match part {
                VerdictAttribute::Code(verdict) => Some(u32::from(*verdict)),
                _ => None,
            })?;
            let chain = parts.iter().find_map(|part| match part {
                VerdictAttribute::Chain(chain) => Some(chain.clone()),
                _ => None,
            });
            Some(Instruction::Verdict { code, chain })
        }
        _ => None,
    }
}

fn decode_lookup(parts: &[Lookup]) -> Option<Instruction> {
    let mut found = None;
    for part in parts {
        match part {
            Lookup::Set(set) => found = Some(set.clone()),
            // No flags: a lookup may also be told to go on when nothing is found.
            Lookup::SourceRegister(Register::Reg1) | Lookup::Flags(0) => {}
            _ => return None,
        }
    }
    Some(Instruction::Lookup { set: found? })
}

fn decode_conntrack(attributes: &[DefaultNla]) -> Option<Instruction> {
    let key = find_number(attributes, NFTA_CT_KEY)?;
    let direction = find(attributes, NFTA_CT_DIRECTION).and_then(|octets| octets.first().copied());
    match (find_number(attributes, NFTA_CT_DREG), find_number(attributes, NFTA_CT_SREG)) {
        (Some(REGISTER_1), None) => Some(Instruction::LoadConntrack { key, direction }),
        (None, Some(REGISTER_1)) => Some(Instruction::SetConntrack { key, direction }),
        _ => None,
    }
}

fn decode_socket(attributes: &[DefaultNla]) -> Option<Instruction> {
    let key = find_number(attributes, NFTA_SOCKET_KEY)?;
    (find_number(attributes, NFTA_SOCKET_DREG) == Some(REGISTER_1)).then_some(Instruction::LoadSocket { key })
}

fn decode_dynset(attributes: &[DefaultNla]) -> Option<Instruction> {
    for attribute in attributes {
        match attribute.kind() {
            NFTA_DYNSET_SET_NAME | NFTA_DYNSET_OP | NFTA_DYNSET_SREG_KEY => {}
            // No time but the set's own, and no flags: it could also be told to go on when nothing is found.
            NFTA_DYNSET_TIMEOUT | NFTA_DYNSET_FLAGS if value(attribute).iter().all(|octet| *octet == 0) => {}
            _ => return None,
        }
    }
    let name = find(attributes, NFTA_DYNSET_SET_NAME)?;
    let set = String::from_utf8(name.strip_suffix(&[0]).unwrap_or(&name).to_vec()).ok()?;
    let operation = find_number(attributes, NFTA_DYNSET_OP)?;
    (find_number(attributes, NFTA_DYNSET_SREG_KEY) == Some(REGISTER_1))
        .then_some(Instruction::ChangeSet { set, operation })
}

fn find(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    attributes.iter().find(|attribute| attribute.kind() == kind).map(value)
}

fn find_number(attributes: &[DefaultNla], kind: u16) -> Option<u32> {
    find(attributes, kind).and_then(|octets| octets.try_into().ok()).map(u32::from_be_bytes)
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut octets = vec![0; attribute.value_len()];
    attribute.emit_value(&mut octets);
    octets
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::Desired;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn reads_back_every_instruction_that_it_writes() {
        let addresses = ["169.254.20.10", "fd00::a", "192.0.2.1"].map(ip);
        let desired =
            Desired::new(&addresses, "nodestub", NonZeroU16::new(53).unwrap(), NonZeroU16::new(8080))
                .and_then(|desired| desired.with_fallback(ip("169.254.20.10"), ip("10.96.0.10")))
                .and_then(|desired| desired.with_fallback(ip("fd00::a"), ip("fd00:96::a")))
                .and_then(|desired| desired.intercept(&[ip("10.96.0.10")]))
                .unwrap();
        for rule in desired.ruleset().rules() {
            let decoded: Vec<_> = instructions(rule).iter().map(|one| decode(&encode(one))).collect();
            assert_eq!(decoded, instructions(rule), "{rule}");
        }
    }

    #[test]
    fn makes_sure_of_family_and_protocol_once_in_a_rule() {
        let desired = Desired::new(&[ip("fd00::a")], "nodestub", NonZeroU16::new(53).unwrap(), None)
            .and_then(|desired| desired.with_fallback(ip("fd00::a"), ip("fd00:96::a")))
            .unwrap();
        for rule in desired.ruleset().rules() {
            let program = instructions(rule);
            for once in [Instruction::LoadFamily, Instruction::LoadProtocol] {
                assert!(program.iter().filter(|one| **one == once).count() <= 1, "{rule}");
            }
            let reads_addresses = program.iter().position(|one| {
                matches!(
                    one,
                    Instruction::LoadHeader { base: BASE_NETWORK, .. } | Instruction::WriteHeader { .. }
                )
            });
            let knows_family = program.iter().position(|one| *one == Instruction::LoadFamily);
            assert!(reads_addresses.is_none() || knows_family < reads_addresses, "{rule}");
        }
    }

    #[test]
    fn lays_keys_side_by_side_in_the_kernels_registers() {
        assert_eq!([1, 2].map(register_of_quarter), [9, 10]);
        assert_eq!([4, 5].map(register_of_quarter), [2, 13]);
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
            // An address that is written without correcting the checksums.
            Expressions::Payload(vec![
                Payload::SourceRegister(Register::Reg1),
                Payload::Base(1),
                Payload::Offset(16),
                Payload::Len(4),
                Payload::CsumType(ChecksumType::None),
            ]),
            // A lookup that goes on when nothing is found.
            Expressions::Lookup(vec![
                Lookup::Set("opened_tcp4".to_owned()),
                Lookup::SourceRegister(Register::Reg1),
                Lookup::Flags(1),
            ]),
            Expressions::Bitwise(vec![
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Mask(DataAttribute::Value(vec![0x12])),
                Bitwise::Xor(DataAttribute::Value(vec![1])),
            ]),
            Expressions::Other {
                expression_type: "dynset".to_owned(),
                attributes: vec![
                    DefaultNla::new(NFTA_DYNSET_SET_NAME, b"opened_tcp4\0".to_vec()),
                    number(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE),
                    number(NFTA_DYNSET_SREG_KEY, REGISTER_1),
                    DefaultNla::new(NFTA_DYNSET_TIMEOUT, 5000_u64.to_be_bytes().to_vec()),
                ],
            },
        ];
        for expression in foreign {
            assert!(matches!(decode(&expression.clone().into()), Instruction::Other(_)), "{expression:?}");
        }
    }
}
