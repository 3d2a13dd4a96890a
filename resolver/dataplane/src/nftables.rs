//! The ruleset in the kernel: sent as one nftables transaction, read back, removed.
//!
//! ```text
//! Rule ──instructions()──▶ [Instruction] ──encode──▶ netlink ──▶ kernel
//!                               ▲                                  │
//!                               └───────── decode ◀── dump ────────┘   compared in `verify`
//! ```
//!
//! The comparison is made of instructions, not of bytes: a kernel may order or add attributes as it likes, but it must
//! run exactly what we meant. The table is deleted and made again inside the transaction, so a packet sees the old rules
//! or the new ones, never none.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook as HookAttribute, HookNumber, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage,
    Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::desired::{Hook, Protocol, Rule, Ruleset, Side, TABLE};

/// `NFNL_SUBSYS_NFTABLES`: what a batch is for, in its first and last message.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
/// The kernel answers inside the system call; this is only for a kernel that does not answer at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// A dump that somebody else's change interrupted is asked for again this many times.
const DUMP_TRIES: usize = 8;

/// Puts our table in place of whatever stood under its name, in one transaction, and reads it back.
pub async fn replace(ruleset: &Ruleset) -> Result<(), Error> {
    let table = || TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    let mut steps = vec![
        // Deleting what is not there fails the transaction, so it is made first if need be.
        Step::new("table inet nodestub", NfTablesMessage::NewTable(table())),
        Step::new("delete table inet nodestub", NfTablesMessage::DeleteTable(table())),
        Step::new("table inet nodestub", NfTablesMessage::NewTable(table())),
    ];
    for hook in Hook::ALL {
        steps.push(Step::new(format!("chain {hook}"), NfTablesMessage::NewChain(chain(hook))));
        for rule in ruleset.chain(hook) {
            steps.push(Step::new(format!("rule `{rule}`"), NfTablesMessage::NewRule(encode_rule(rule))));
        }
    }
    transact(steps).await?;
    verify(ruleset).await
}

/// Reads the table back and compares chain by chain, rule by rule.
pub async fn verify(ruleset: &Ruleset) -> Result<(), Error> {
    let chains = read_chains().await?;
    let rules = read_rules().await?;
    for hook in Hook::ALL {
        let Some(found) = chains.iter().find(|chain| chain.name == hook.name()) else {
            return Err(Error::Differs(format!("chain {hook} is missing")));
        };
        let expected = (Some(hook_number(hook)), Some(hook.priority()), Some(NF_ACCEPT));
        if (found.hook, found.priority, found.policy) != expected {
            return Err(Error::Differs(format!("chain {hook} is hooked otherwise: {found:?}")));
        }
        let mut in_kernel = rules.iter().filter(|rule| rule.chain == hook.name());
        for rule in ruleset.chain(hook) {
            match in_kernel.next() {
                Some(found) if found.instructions == instructions(rule) => {}
                Some(found) => {
                    return Err(Error::Differs(format!(
                        "in place of rule `{rule}` chain {hook} has {:?}",
                        found.instructions
                    )));
                }
                None => return Err(Error::Differs(format!("rule `{rule}` is missing"))),
            }
        }
        if let Some(more) = in_kernel.next() {
            return Err(Error::Differs(format!("chain {hook} has a rule too many: {:?}", more.instructions)));
        }
    }
    match chains.iter().find(|chain| Hook::ALL.iter().all(|hook| hook.name() != chain.name)) {
        Some(more) => Err(Error::Differs(format!("there is a chain too many: {}", more.name))),
        None => Ok(()),
    }
}

/// Deletes our table. One that is not there is no error.
pub async fn delete() -> Result<(), Error> {
    let table = TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    let step = Step::new("delete table inet nodestub", NfTablesMessage::DeleteTable(table));
    match transact(vec![step]).await {
        Err(Error::Refused { cause, .. }) if cause.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Why the rules are not in place.
#[derive(Debug)]
pub enum Error {
    /// The netlink socket could not be opened or used.
    Socket {
        /// What was tried.
        step: &'static str,
        /// The system's word.
        cause: io::Error,
    },
    /// The kernel refused a part of the transaction, and so the whole.
    Refused {
        /// The part, as nft text.
        step: String,
        /// The kernel's word.
        cause: io::Error,
    },
    /// The kernel did not answer in ten seconds.
    NoAnswer,
    /// The kernel sent something that is no message.
    Garbled(netlink_packet_core::DecodeError),
    /// What was read back is not what was sent: a rule or chain, as text.
    Differs(String),
}

impl Error {
    /// What the operator can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        let (Self::Socket { cause, .. } | Self::Refused { cause, .. }) = self else {
            return match self {
                Self::Differs(_) => Some("another program changes table `inet nodestub`: see `nft monitor`"),
                _ => None,
            };
        };
        match cause.raw_os_error()? {
            libc::EPERM | libc::EACCES => Some(crate::NEEDS_NET_ADMIN),
            libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EINVAL => Some(
                "this kernel has no nf_tables for family inet: `modprobe nf_tables`, kernel 4.9 or newer",
            ),
            libc::ENOENT => Some("this kernel lacks an nf_tables part: `modprobe nft_ct`"),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { step, cause } => write!(f, "{step}: {cause}"),
            Self::Refused { step, cause } => write!(f, "the kernel refused {step}: {cause}"),
            Self::NoAnswer => write!(f, "the kernel did not answer within {} s", ANSWER_DEADLINE.as_secs()),
            Self::Garbled(cause) => write!(f, "the kernel's answer could not be read: {cause}"),
            Self::Differs(what) => write!(f, "read back, the rules are not those that were sent: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket { cause, .. } | Self::Refused { cause, .. } => Some(cause),
            Self::Garbled(cause) => Some(cause),
            Self::NoAnswer | Self::Differs(_) => None,
        }
    }
}

// ---- rules as the kernel's instructions ----------------------------------------------------------------------------

/// One expression of a rule. All loads go to register 1, and every comparison is for equality with it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Instruction {
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
fn instructions(rule: &Rule) -> Vec<Instruction> {
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

fn encode(instruction: &Instruction) -> ListAttribute<ExpressionAttribute> {
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

fn decode(expression: &ListAttribute<ExpressionAttribute>) -> Instruction {
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

fn encode_rule(rule: &Rule) -> RuleMessage {
    // nft's own form of a comment: type 0, length, text with its final zero (libnftnl's user data).
    let mut comment = vec![0, u8::try_from(rule.purpose.len().saturating_add(1)).unwrap_or(u8::MAX)];
    comment.extend(rule.purpose.bytes().take(usize::from(u8::MAX - 1)));
    comment.push(0);
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(rule.hook.name().to_owned()),
            RuleAttribute::Expressions(instructions(rule).iter().map(encode).collect()),
            RuleAttribute::UserData(comment),
        ],
    }
}

/// `NF_ACCEPT`.
const NF_ACCEPT: u32 = 1;

fn chain(hook: Hook) -> ChainMessage {
    let number: InetHookNumber = hook_number(hook).into();
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(hook.name().to_owned()),
            ChainAttribute::Type("filter".to_owned()),
            ChainAttribute::Hook(vec![
                HookAttribute::Number(number.into()),
                // Signed in the kernel, unsigned in the crate: the same octets.
                HookAttribute::Priority(u32::from_ne_bytes(hook.priority().to_ne_bytes())),
            ]),
            ChainAttribute::Policy(NF_ACCEPT),
        ],
    }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => InetHookNumber::PreRouting.into(),
        Hook::Output => InetHookNumber::LocalOut.into(),
    }
}

// ---- reading back --------------------------------------------------------------------------------------------------

#[derive(Debug)]
struct KernelChain {
    name: String,
    hook: Option<u32>,
    priority: Option<i32>,
    policy: Option<u32>,
}

struct KernelRule {
    chain: String,
    instructions: Vec<Instruction>,
}

async fn read_chains() -> Result<Vec<KernelChain>, Error> {
    let request =
        NfTablesMessage::GetChain(ChainMessage { attributes: vec![ChainAttribute::Table(TABLE.to_owned())] });
    let messages = dump("read the chains back", request).await?;
    Ok(messages.iter().filter_map(kernel_chain).collect())
}

async fn read_rules() -> Result<Vec<KernelRule>, Error> {
    let request =
        NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.to_owned())] });
    let messages = dump("read the rules back", request).await?;
    Ok(messages.iter().filter_map(kernel_rule).collect())
}

fn kernel_chain(message: &NfTablesMessage) -> Option<KernelChain> {
    let NfTablesMessage::NewChain(ChainMessage { attributes }) = message else { return None };
    let mut chain = KernelChain { name: String::new(), hook: None, priority: None, policy: None };
    let mut ours = false;
    for attribute in attributes {
        match attribute {
            // A dump of chains holds those of all tables.
            ChainAttribute::Table(table) => ours = table == TABLE,
            ChainAttribute::Name(name) => chain.name.clone_from(name),
            ChainAttribute::Policy(policy) => chain.policy = Some(*policy),
            ChainAttribute::Hook(parts) => {
                for part in parts {
                    match part {
                        HookAttribute::Number(HookNumber::Inet(number)) => {
                            chain.hook = Some((*number).into());
                        }
                        HookAttribute::Priority(value) => {
                            chain.priority = Some(i32::from_ne_bytes(value.to_ne_bytes()));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    ours.then_some(chain)
}

fn kernel_rule(message: &NfTablesMessage) -> Option<KernelRule> {
    let NfTablesMessage::NewRule(RuleMessage { attributes }) = message else { return None };
    let mut rule = KernelRule { chain: String::new(), instructions: Vec::new() };
    let mut ours = false;
    for attribute in attributes {
        match attribute {
            RuleAttribute::Table(table) => ours = table == TABLE,
            RuleAttribute::Chain(chain) => rule.chain.clone_from(chain),
            RuleAttribute::Expressions(expressions) => {
                rule.instructions = expressions.iter().map(decode).collect();
            }
            _ => {}
        }
    }
    ours.then_some(rule)
}

// ---- the conversation ----------------------------------------------------------------------------------------------

/// A message of a transaction and its name in errors.
struct Step {
    name: String,
    message: NfTablesMessage,
}

impl Step {
    fn new(name: impl Into<String>, message: NfTablesMessage) -> Self {
        Self { name: name.into(), message }
    }
}

/// Sends the steps between a batch's begin and end, and waits for the acknowledgement of each.
async fn transact(steps: Vec<Step>) -> Result<(), Error> {
    let bracket = |control| {
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES),
            control,
        )
    };
    // Sequence number 0 is the batch as a whole, and step n has n + 1.
    let mut names = vec!["the transaction".to_owned()];
    let mut bytes = Vec::new();
    append(&mut bytes, bracket(ControlMessage::BatchBegin), NLM_F_REQUEST, 0);
    for step in steps {
        let sequence = u32::try_from(names.len()).unwrap_or(u32::MAX);
        names.push(step.name);
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        append(&mut bytes, NetfilterMessage::new(header, step.message), flags, sequence);
    }
    append(&mut bytes, bracket(ControlMessage::BatchEnd), NLM_F_REQUEST, 0);

    let socket = connect()?;
    send(&socket, &bytes, "send the transaction").await?;
    let mut waiting = names.len().saturating_sub(1);
    while waiting > 0 {
        for message in receive(&socket, "receive the acknowledgements").await? {
            let NetlinkPayload::Error(answer) = message.payload else { continue };
            if answer.code.is_some() {
                let index = usize::try_from(message.header.sequence_number).unwrap_or(usize::MAX);
                let step = names.get(index).cloned().unwrap_or_else(|| "an unknown step".to_owned());
                return Err(Error::Refused { step, cause: answer.to_io() });
            }
            waiting = waiting.saturating_sub(1);
        }
    }
    Ok(())
}

/// Asks for a dump, again when a change by somebody else interrupted it.
async fn dump(step: &'static str, request: NfTablesMessage) -> Result<Vec<NfTablesMessage>, Error> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut bytes = Vec::new();
    append(&mut bytes, NetfilterMessage::new(header, request), NLM_F_REQUEST | NLM_F_DUMP, 1);
    for _ in 0..DUMP_TRIES {
        let socket = connect()?;
        send(&socket, &bytes, step).await?;
        if let Some(messages) = collect(&socket, step).await? {
            return Ok(messages);
        }
    }
    Err(Error::Socket { step, cause: io::ErrorKind::Interrupted.into() })
}

/// The messages of a dump; `None` when it was interrupted.
async fn collect(socket: &TokioSocket, step: &'static str) -> Result<Option<Vec<NfTablesMessage>>, Error> {
    let mut found = Vec::new();
    let mut interrupted = false;
    loop {
        for message in receive(socket, step).await? {
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(message),
                    ..
                }) => found.push(message),
                NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                NetlinkPayload::Error(answer) => match answer.code {
                    // The table, or the chain, is not there: nothing to list.
                    Some(_) if answer.to_io().raw_os_error() == Some(libc::ENOENT) => {
                        return Ok(Some(Vec::new()));
                    }
                    Some(_) => return Err(Error::Refused { step: step.to_owned(), cause: answer.to_io() }),
                    None => {}
                },
                _ => {}
            }
        }
    }
}

fn connect() -> Result<TokioSocket, Error> {
    let open = || {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        // Refusals quote only the header of what they refuse, so many fit the receive buffer.
        socket.socket_ref().set_cap_ack(true)?;
        Ok::<_, io::Error>(socket)
    };
    open().map_err(|cause| Error::Socket { step: "open a netfilter netlink socket", cause })
}

async fn send(socket: &TokioSocket, bytes: &[u8], step: &'static str) -> Result<(), Error> {
    match tokio::time::timeout(ANSWER_DEADLINE, socket.send(bytes)).await {
        Err(_) => Err(Error::NoAnswer),
        Ok(Err(cause)) => Err(Error::Socket { step, cause }),
        Ok(Ok(_)) => Ok(()),
    }
}

async fn receive(
    socket: &TokioSocket,
    step: &'static str,
) -> Result<Vec<NetlinkMessage<NetfilterMessage>>, Error> {
    let datagram = match tokio::time::timeout(ANSWER_DEADLINE, socket.recv_from_full()).await {
        Err(_) => return Err(Error::NoAnswer),
        Ok(Err(cause)) => return Err(Error::Socket { step, cause }),
        Ok(Ok((datagram, _))) => datagram,
    };
    let mut rest = datagram.as_slice();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(Error::Garbled)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(1);
        messages.push(message);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

fn append(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    // Messages of one datagram start at multiples of four.
    buffer.resize(buffer.len().next_multiple_of(4), 0);
    bytes.append(&mut buffer);
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

    #[test]
    fn names_the_capability_and_the_module_that_are_missing() {
        let refused = |errno| Error::Refused {
            step: "the transaction".to_owned(),
            cause: io::Error::from_raw_os_error(errno),
        };
        assert!(refused(libc::EPERM).hint().unwrap().contains("NET_ADMIN"));
        assert!(refused(libc::EOPNOTSUPP).hint().unwrap().contains("modprobe nf_tables"));
        assert!(refused(libc::ENOENT).hint().unwrap().contains("modprobe nft_ct"));
        assert_eq!(refused(libc::ENOMEM).hint(), None);
    }
}
