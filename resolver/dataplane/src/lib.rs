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
//! | [`desired`] | [`Desired`] and the [`Ruleset`] that follows from it; no kernel, no I/O |
//! | [`link`] | device `nodestub` of type dummy, else `lo`; addresses /32 and /128; rtnetlink |
//! | [`nftables`] | the ruleset as netfilter messages, sent as one transaction and read back |
//!
//! Order: the rules come before the address and go after it, so no packet to the address is ever tracked. What stood
//! there before is not ours: [`Applied::remove`] takes away only what [`apply`] made. This crate knows nothing of DNS
//! beyond its port, calls no program, and works in the network namespace of the calling thread.
//!
//! Not here: accept rules. NodeLocal has some in the filter table, but in a table of our own an accept cannot
//! undo another table's drop, so they would do nothing.
#![forbid(unsafe_code)]

pub mod desired;
pub mod link;
pub mod nftables;
pub mod rules;

use std::fmt;

pub use desired::{Desired, FailOpen, OffReason};
pub use rules::{Rule, Ruleset};

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

/// Brings the kernel to the desired state: rules, then address. On a failure nothing of this call is left.
///
/// Applying twice is the same as applying once.
pub async fn apply(desired: &Desired, parts: Parts) -> Result<Applied, Error> {
    let ruleset = parts.rules.then(|| desired.ruleset());
    if let Some(ruleset) = &ruleset {
        nftables::ensure(ruleset).await?;
    }
    if !parts.addresses {
        return Ok(Applied { ruleset, link: None });
    }
    match link::apply(desired).await {
        Ok(link) => Ok(Applied { ruleset, link: Some(link) }),
        Err(error) => {
            if ruleset.is_some()
                && let Err(left) = nftables::delete().await
            {
                tracing::warn!(error = %left, "the rules could not be taken back after a failure");
            }
            Err(error.into())
        }
    }
}

/// What has been applied. Dropping it leaves everything in place; [`Applied::remove`] takes it away.
#[derive(Debug)]
#[must_use = "dropping this leaves the rules and the address in place"]
pub struct Applied {
    ruleset: Option<Ruleset>,
    link: Option<link::Link>,
}

impl Applied {
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

    /// Takes away what was made, the address first. What is already gone is no error; both parts are tried.
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
