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

mod conversation;
mod instruction;

use std::fmt;
use std::io;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, HookNumber, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetDescription, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};

use crate::desired::TABLE;
use crate::rules::{Chain, Family, Hook, OPENED_SIZE, OPENED_TIMEOUT_SECONDS, Rule, Ruleset};
use conversation::{ANSWER_DEADLINE, Step, dump, transact};
use instruction::{Instruction, decode, encode, instructions};

/// `NF_ACCEPT`.
const NF_ACCEPT: u32 = 1;
/// nft's numbers for the types of a set's key, six bits each in a key of several.
const KEY_IPV4_ADDRESS: u32 = 7;
const KEY_IPV6_ADDRESS: u32 = 8;
const KEY_PORT: u32 = 13;
const KEY_TYPE_BITS: u32 = 6;

/// How [`ensure`] found our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Was {
    /// As computed; it was left alone.
    Same,
    /// Otherwise; it was replaced.
    Different,
    /// Not there; it was made.
    Absent,
}

/// Makes sure that our table is as computed. One that is so already is left alone, and what its sets remember with it:
/// TCP connections that were opened past the listener live on over a restart.
pub async fn ensure(ruleset: &Ruleset) -> Result<Was, Error> {
    match verify(ruleset).await {
        Ok(()) => Ok(Was::Same),
        Err(Error::Differs(_)) => {
            let was = if read_chains().await?.is_empty() { Was::Absent } else { Was::Different };
            replace(ruleset).await.map(|()| was)
        }
        Err(error) => Err(error),
    }
}

/// Puts our table in place of whatever stood under its name, in one transaction, and reads it back.
pub async fn replace(ruleset: &Ruleset) -> Result<(), Error> {
    let table = || TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    let mut steps = vec![
        // Deleting what is not there fails the transaction, so it is made first if need be.
        Step::new("table inet nodestub", NfTablesMessage::NewTable(table())),
        Step::new("delete table inet nodestub", NfTablesMessage::DeleteTable(table())),
        Step::new("table inet nodestub", NfTablesMessage::NewTable(table())),
    ];
    for (family, id) in ruleset.sets().iter().zip(1..) {
        let name = family.opened_set();
        steps.push(Step::new(format!("set {name}"), NfTablesMessage::NewSet(encode_set(*family, id))));
    }
    // All of them before the first rule: rules lead from chain to chain.
    for chain in ruleset.chains() {
        steps.push(Step::new(format!("chain {chain}"), NfTablesMessage::NewChain(encode_chain(*chain))));
    }
    for rule in ruleset.rules() {
        steps.push(Step::new(format!("rule `{rule}`"), NfTablesMessage::NewRule(encode_rule(rule))));
    }
    transact(steps).await?;
    verify(ruleset).await
}

/// Reads the table back and compares set by set, chain by chain, rule by rule. What the sets hold is not compared.
pub async fn verify(ruleset: &Ruleset) -> Result<(), Error> {
    compare_sets(ruleset, &read_sets().await?)?;
    compare_chains(ruleset, &read_chains().await?)?;
    compare_rules(ruleset, &read_rules().await?)
}

/// Whether there is a table of ours, in whatever form.
pub async fn is_there() -> Result<bool, Error> {
    Ok(!read_chains().await?.is_empty())
}

/// Deletes our table. Returns whether there was one.
pub async fn delete() -> Result<bool, Error> {
    let table = TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    let step = Step::new("delete table inet nodestub", NfTablesMessage::DeleteTable(table));
    match transact(vec![step]).await {
        Ok(()) => Ok(true),
        Err(Error::Refused { cause, .. }) if cause.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same where the kernel may have no nf_tables at all, and so no table of ours.
pub async fn cleanup() -> Result<bool, Error> {
    match delete().await {
        Err(Error::Socket { cause, .. } | Error::Refused { cause, .. })
            if matches!(cause.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP)) =>
        {
            Ok(false)
        }
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
            libc::ENOENT => Some(
                "this kernel lacks an nf_tables part: `modprobe -a nft_ct nft_socket`; without nft_socket fail-open must be off",
            ),
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

fn compare_sets(ruleset: &Ruleset, found: &[KernelSet]) -> Result<(), Error> {
    for family in ruleset.sets() {
        let expected = KernelSet::of(*family);
        match found.iter().find(|set| set.name == expected.name) {
            None => return Err(Error::Differs(format!("set {} is missing", expected.name))),
            Some(found) if *found != expected => {
                return Err(Error::Differs(format!("set {} is made otherwise: {found:?}", expected.name)));
            }
            Some(_) => {}
        }
    }
    match found.iter().find(|set| ruleset.sets().iter().all(|family| family.opened_set() != set.name)) {
        Some(more) => Err(Error::Differs(format!("there is a set too many: {}", more.name))),
        None => Ok(()),
    }
}

fn compare_chains(ruleset: &Ruleset, found: &[KernelChain]) -> Result<(), Error> {
    for chain in ruleset.chains() {
        let Some(found) = found.iter().find(|found| found.name == chain.name()) else {
            return Err(Error::Differs(format!("chain {chain} is missing")));
        };
        let expected = match chain.hook() {
            Some(hook) => (Some(hook_number(hook)), Some(hook.priority()), Some(NF_ACCEPT)),
            None => (None, None, None),
        };
        if (found.hook, found.priority, found.policy) != expected {
            return Err(Error::Differs(format!("chain {chain} is hooked otherwise: {found:?}")));
        }
    }
    match found.iter().find(|found| ruleset.chains().iter().all(|chain| chain.name() != found.name)) {
        Some(more) => Err(Error::Differs(format!("there is a chain too many: {}", more.name))),
        None => Ok(()),
    }
}

fn compare_rules(ruleset: &Ruleset, found: &[KernelRule]) -> Result<(), Error> {
    for chain in ruleset.chains() {
        let mut in_kernel = found.iter().filter(|rule| rule.chain == chain.name());
        for rule in ruleset.chain(*chain) {
            match in_kernel.next() {
                Some(found) if found.instructions == instructions(rule) => {}
                Some(found) => {
                    return Err(Error::Differs(format!(
                        "in place of rule `{rule}` chain {chain} has {:?}",
                        found.instructions
                    )));
                }
                None => return Err(Error::Differs(format!("rule `{rule}` is missing"))),
            }
        }
        if let Some(more) = in_kernel.next() {
            return Err(Error::Differs(format!(
                "chain {chain} has a rule too many: {:?}",
                more.instructions
            )));
        }
    }
    Ok(())
}

fn encode_set(family: Family, id: u32) -> SetMessage {
    let address = match family {
        Family::V4 => KEY_IPV4_ADDRESS,
        Family::V6 => KEY_IPV6_ADDRESS,
    };
    // For nft's listing only; the kernel goes by the length.
    let key_type = [address, KEY_PORT, address].iter().fold(0, |all, one| (all << KEY_TYPE_BITS) | one);
    let set = KernelSet::of(family);
    SetMessage {
        attributes: vec![
            SetAttribute::Table(TABLE.to_owned()),
            SetAttribute::Name(set.name),
            SetAttribute::Id(id),
            SetAttribute::Flags(SetFlags::from_bits_retain(set.flags)),
            SetAttribute::KeyType(key_type),
            SetAttribute::KeyLen(set.key_length),
            SetAttribute::Timeout(set.timeout_ms),
            SetAttribute::Description(vec![SetDescription::Size(set.size)]),
        ],
    }
}

fn encode_rule(rule: &Rule) -> RuleMessage {
    // nft's own form of a comment: type 0, length, text with its final zero (libnftnl's user data).
    let mut comment = vec![0, u8::try_from(rule.purpose().len().saturating_add(1)).unwrap_or(u8::MAX)];
    comment.extend(rule.purpose().bytes().take(usize::from(u8::MAX - 1)));
    comment.push(0);
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(rule.chain().name().to_owned()),
            RuleAttribute::Expressions(instructions(rule).iter().map(encode).collect()),
            RuleAttribute::UserData(comment),
        ],
    }
}

fn encode_chain(chain: Chain) -> ChainMessage {
    let mut attributes =
        vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(chain.name().to_owned())];
    if let Some(hook) = chain.hook() {
        let number: InetHookNumber = hook_number(hook).into();
        attributes.extend([
            ChainAttribute::Type("filter".to_owned()),
            ChainAttribute::Hook(vec![
                HookAttribute::Number(number.into()),
                // Signed in the kernel, unsigned in the crate: the same octets.
                HookAttribute::Priority(u32::from_ne_bytes(hook.priority().to_ne_bytes())),
            ]),
            ChainAttribute::Policy(NF_ACCEPT),
        ]);
    }
    ChainMessage { attributes }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => InetHookNumber::PreRouting.into(),
        Hook::Output => InetHookNumber::LocalOut.into(),
        Hook::Postrouting => InetHookNumber::PostRouting.into(),
    }
}

/// What a set is, without what it holds.
#[derive(Debug, PartialEq, Eq)]
struct KernelSet {
    name: String,
    flags: u32,
    key_length: u32,
    timeout_ms: u64,
    size: u32,
}

impl KernelSet {
    /// The set of a family as it should be.
    fn of(family: Family) -> Self {
        // Each part takes a multiple of four octets: address, port, address.
        let key_length = match family {
            Family::V4 => 4 + 4 + 4,
            Family::V6 => 16 + 4 + 16,
        };
        Self {
            name: family.opened_set().to_owned(),
            flags: (SetFlags::Timeout | SetFlags::Eval).bits(),
            key_length,
            timeout_ms: u64::from(OPENED_TIMEOUT_SECONDS).saturating_mul(1000),
            size: OPENED_SIZE,
        }
    }
}

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

async fn read_sets() -> Result<Vec<KernelSet>, Error> {
    let request =
        NfTablesMessage::GetSet(SetMessage { attributes: vec![SetAttribute::Table(TABLE.to_owned())] });
    let messages = dump("read the sets back", request).await?;
    Ok(messages.iter().filter_map(kernel_set).collect())
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

fn kernel_set(message: &NfTablesMessage) -> Option<KernelSet> {
    let NfTablesMessage::NewSet(SetMessage { attributes }) = message else { return None };
    let mut set = KernelSet { name: String::new(), flags: 0, key_length: 0, timeout_ms: 0, size: 0 };
    let mut ours = false;
    for attribute in attributes {
        match attribute {
            SetAttribute::Table(table) => ours = table == TABLE,
            SetAttribute::Name(name) => set.name.clone_from(name),
            SetAttribute::Flags(flags) => set.flags = flags.bits(),
            SetAttribute::KeyLen(length) => set.key_length = *length,
            SetAttribute::Timeout(timeout) => set.timeout_ms = *timeout,
            SetAttribute::Description(parts) => {
                for part in parts {
                    if let SetDescription::Size(size) = part {
                        set.size = *size;
                    }
                }
            }
            _ => {}
        }
    }
    ours.then_some(set)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_capability_and_the_module_that_are_missing() {
        let refused = |errno| Error::Refused {
            step: "the transaction".to_owned(),
            cause: io::Error::from_raw_os_error(errno),
        };
        assert!(refused(libc::EPERM).hint().unwrap().contains("NET_ADMIN"));
        assert!(refused(libc::EOPNOTSUPP).hint().unwrap().contains("modprobe nf_tables"));
        assert!(refused(libc::ENOENT).hint().unwrap().contains("modprobe -a nft_ct nft_socket"));
        assert_eq!(refused(libc::ENOMEM).hint(), None);
    }
}
