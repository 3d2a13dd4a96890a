//! The node's part: the local address, and the rules that keep DNS to it out of connection tracking.
//!
//! Kernel state is desired state. A pure function computes it whole, it is applied in one step, and read back:
//!
//! ```text
//! Desired ──ruleset()──▶ Ruleset ──nftables::replace──▶ one transaction ──▶ dump, compare
//!    │                      └─ Display: the same as nft text
//!    └─────────────────────────────link::apply────────▶ device and addresses ──▶ dump, compare
//! ```
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`desired`] | [`Desired`], and what becomes of a query while nobody listens; no kernel, no I/O |
//! | [`rules`] | the [`Ruleset`] that follows from it, and why each rule stands; no kernel, no I/O |
//! | [`link`] | device `nodestub` of type dummy, else `lo`; addresses /32 and /128; marks to know them again; rtnetlink |
//! | [`nftables`] | the ruleset as netfilter messages, sent as one transaction and read back |
//! | [`proof`] | a query of our own that shows whether fail-open works here |
//! | [`obstacles`] | chains of others that would drop our packets, and the line to add there; `sockopt` in it has the one unsafe block |
//! | [`watch`] | the kernel's notifications: somebody changed something of ours |
//!
//! Order: the rules come before the address and go after it, so no packet to the address is ever tracked. Others' things
//! are left alone. What a former process of ours left is adopted: a table that is already so is not touched, an address
//! with our mark is ours. [`Applied::remove`] takes away what is of this wish, [`cleanup()`] whatever we ever made.
//! This crate knows nothing of DNS beyond its port, calls no program, and works in the network namespace of the calling
//! thread.
//!
//! ```no_run
//! # async fn keep() -> Result<(), Box<dyn std::error::Error>> {
//! # let (local, kube_dns) = ("169.254.20.10".parse()?, "10.96.0.10".parse()?);
//! # let dns_port = std::num::NonZeroU16::new(53).unwrap();
//! use nodestub_dataplane::{Desired, Parts, Watch, apply};
//!
//! let desired = Desired::new(&[local], "nodestub", dns_port, None)?.with_fallback(local, kube_dns)?;
//! for (address, fail_open) in desired.fail_open() {
//!     println!("{address}: fail-open {fail_open}");
//! }
//! let mut watch = Watch::open()?;
//! let mut applied = apply(&desired, Parts::ALL).await?;
//! loop {
//!     let wrong = watch.broken(&applied).await?;
//!     println!("{wrong}; repairing");
//!     applied.repair().await?;
//! }
//! # }
//! ```
//!
//! Not here: accept rules. NodeLocal has some in the filter table, but in a table of our own an accept cannot
//! undo another table's drop, so they would do nothing.
#![deny(unsafe_code)]

pub mod desired;
pub mod link;
pub mod nftables;
pub mod obstacles;
pub mod proof;
pub mod rules;
pub mod watch;

use std::fmt;

pub use desired::{Desired, FailOpen, OffReason};
pub use rules::{Rule, Ruleset};
pub use watch::Watch;

/// Which of the two things [`apply`] does: node-cache's `-setupiptables` and `-setupinterface`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The rules that keep DNS out of connection tracking.
    pub rules: bool,
    /// The device and its addresses; without, somebody else has put them up.
    pub addresses: bool,
}

impl Parts {
    /// Both.
    pub const ALL: Self = Self { rules: true, addresses: true };
}

/// Brings the kernel to the desired state: rules, then address. On a failure nothing that this call made is left; rules
/// that were there before, in whatever form, stay in the form of this wish, because pods may live by them.
///
/// Applying twice is the same as applying once. What is already so is not touched.
pub async fn apply(desired: &Desired, parts: Parts) -> Result<Applied, Error> {
    let ruleset = parts.rules.then(|| desired.ruleset());
    let mut made = false;
    if let Some(ruleset) = &ruleset {
        made = nftables::ensure(ruleset).await? == nftables::Was::Absent;
    }
    let mut applied = Applied { desired: desired.clone(), ruleset, link: None };
    if !parts.addresses {
        return Ok(applied);
    }
    match link::apply(desired).await {
        Ok(link) => {
            applied.link = Some(link);
            Ok(applied)
        }
        Err(error) => {
            if made && let Err(left) = nftables::delete().await {
                tracing::warn!(error = %left, "the rules could not be taken back after a failure");
            }
            Err(error.into())
        }
    }
}

/// Takes away everything that any process of ours ever made: addresses, devices, then the rules. What is not there is no
/// error. Every part is tried; the first error is returned.
///
/// Whether pods still use the address is for the caller to ask before.
pub async fn cleanup() -> Result<Removed, Error> {
    let link = link::cleanup().await;
    let pair = proof::remove().await;
    let rules = nftables::cleanup().await;
    let mut link = link?;
    if pair? {
        link.devices.push(desired::ASK_DEVICE.to_owned());
    }
    Ok(Removed { link, rules: rules? })
}

/// What [`cleanup()`] found and took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Addresses and devices.
    pub link: link::Swept,
    /// Whether our table was there.
    pub rules: bool,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.link.addresses.iter().map(|(address, device)| format!("{address} from {device}")));
        parts.extend(self.link.devices.iter().map(|device| format!("device {device}")));
        if self.rules {
            parts.push(format!("table inet {}", desired::TABLE));
        }
        match parts.is_empty() {
            true => write!(f, "there was nothing to remove")?,
            false => write!(f, "removed {}", parts.join(", "))?,
        }
        for device in &self.link.left {
            write!(f, "; device {device} stays, it carries addresses that are not ours")?;
        }
        Ok(())
    }
}

/// What has been applied. Dropping it leaves everything in place; [`Applied::remove`] takes it away.
#[derive(Debug)]
#[must_use = "dropping this leaves the rules and the address in place"]
pub struct Applied {
    desired: Desired,
    ruleset: Option<Ruleset>,
    link: Option<link::Link>,
}

impl Applied {
    /// Makes what is missing or different as it was applied, and reads it back. Both parts are tried; the first error is
    /// returned, and nothing is taken away after one.
    pub async fn repair(&mut self) -> Result<(), Error> {
        let rules = match &self.ruleset {
            Some(ruleset) => nftables::ensure(ruleset).await.map(drop),
            None => Ok(()),
        };
        if self.link.is_some() {
            match link::apply(&self.desired).await {
                Ok(link) => self.link = Some(link),
                Err(error) => return rules.map_err(Error::from).and(Err(error.into())),
            }
        }
        rules?;
        self.verify().await
    }

    /// Reads the kernel's state back and compares. An error names the first thing that is missing or different.
    pub async fn verify(&self) -> Result<(), Error> {
        if let Some(ruleset) = &self.ruleset {
            nftables::verify(ruleset).await?;
        }
        if let Some(link) = &self.link {
            link.verify().await?;
        }
        Ok(())
    }

    /// Takes away what is ours of it, the address first. What is already gone is no error; both parts are tried.
    pub async fn remove(self) -> Result<(), Error> {
        let link = match self.link {
            Some(link) => link.remove().await,
            None => Ok(()),
        };
        if self.ruleset.is_some() {
            nftables::delete().await?;
        }
        Ok(link?)
    }

    /// The wish.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The name of the device that carries the addresses; `None` where that is not our part.
    pub fn device(&self) -> Option<&str> {
        self.link.as_ref().map(link::Link::device)
    }

    /// The rules in force; `None` where they are not our part.
    pub fn ruleset(&self) -> Option<&Ruleset> {
        self.ruleset.as_ref()
    }

    /// How many rules are in force.
    pub fn rule_count(&self) -> usize {
        self.ruleset.as_ref().map_or(0, |ruleset| ruleset.rules().len())
    }
}

/// Why the kernel's state is not as desired. The text says which step failed, why, and what to do where we know it.
#[derive(Debug)]
pub enum Error {
    /// The device or its addresses.
    Link(link::Error),
    /// The rules.
    Rules(nftables::Error),
}

impl Error {
    /// What the operator can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Link(error) => error.hint(),
            Self::Rules(error) => error.hint(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => write!(f, "local address: {error}")?,
            Self::Rules(error) => write!(f, "conntrack bypass: {error}")?,
        }
        match self.hint() {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Link(error) => Some(error),
            Self::Rules(error) => Some(error),
        }
    }
}

impl From<link::Error> for Error {
    fn from(error: link::Error) -> Self {
        Self::Link(error)
    }
}

impl From<nftables::Error> for Error {
    fn from(error: nftables::Error) -> Self {
        Self::Rules(error)
    }
}

/// The remedy for EPERM, the same in both modules.
const NEEDS_NET_ADMIN: &str =
    "CAP_NET_ADMIN is missing: run as root, or add NET_ADMIN to the container's capabilities";
