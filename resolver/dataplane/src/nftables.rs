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
    RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};

use crate::desired::{Hook, Rule, Ruleset, TABLE};
use conversation::{ANSWER_DEADLINE, Step, dump, transact};
use instruction::{Instruction, decode, encode, instructions};

/// `NF_ACCEPT`.
const NF_ACCEPT: u32 = 1;

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
        assert!(refused(libc::ENOENT).hint().unwrap().contains("modprobe nft_ct"));
        assert_eq!(refused(libc::ENOMEM).hint(), None);
    }
}
