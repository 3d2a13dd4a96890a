//! What the store of the `self` mode holds: all that rotation needs, in the keys of one Secret, written as a whole.
//!
//! | key | |
//! | --- | --- |
//! | `tls.crt`, `tls.key` | the leaf and its key |
//! | `ca.crt` | every CA to trust: current, next, retired |
//! | `current-ca.crt`, `current-ca.key` | the CA that signs |
//! | `next-ca.crt`, `next-ca.key` | the CA that will sign, once the API server trusts it |
//! | `leaves-end.json` | by CA, in Unix seconds: when the last leaf that it signed ends |
//!
//! [`Kept::read`] takes what is good and names what is not; [`Kept::after`] carries an [`Action`] out; [`Kept::write`]
//! gives the new contents. What is damaged is as if it were missing: the machine makes it anew, and what is still
//! trusted stays trusted for as long as it may be in use.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::authority::{Authority, AuthorityError};
use crate::bundle::{Bundle, Root, id, text};
use crate::issue::{IssueError, ServingNames};
use crate::machine::{Action, Certificate, Id, Leaf, MAX_AUTHORITIES, Plan, Registration, Retired, State};
use crate::pair::{Material, Pair, PairError};
use crate::trust;

/// The leaf and its intermediates.
pub const CERTIFICATE: &str = "tls.crt";
/// The leaf's key.
pub const KEY: &str = "tls.key";
/// Every CA to trust.
pub const BUNDLE: &str = "ca.crt";
const CURRENT: [&str; 2] = ["current-ca.crt", "current-ca.key"];
const NEXT: [&str; 2] = ["next-ca.crt", "next-ca.key"];
const LEAVES_END: &str = "leaves-end.json";

/// Contents of a Secret.
pub type Contents = BTreeMap<String, Vec<u8>>;

/// What the store holds, as far as it is good.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The CA that signs.
    pub current: Option<Arc<Authority>>,
    /// The CA that will sign.
    pub next: Option<Arc<Authority>>,
    /// CAs that have signed, without their keys.
    pub retired: Vec<Root>,
    /// What is served.
    pub leaf: Option<KeptLeaf>,
    /// When the last leaf of a CA ends.
    leaves_end: BTreeMap<Id, SystemTime>,
}

/// The leaf that is kept.
#[derive(Debug, Clone)]
pub struct KeptLeaf {
    /// Its text.
    pub material: Material,
    /// The text, read.
    pub pair: Arc<Pair>,
    /// Who signed it.
    pub issuer: Id,
    /// Names that are asked for and missing in it.
    pub missing: Vec<String>,
}

/// Something in the store that cannot be used, and is mended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The leaf or its key.
    Leaf(PairError),
    /// None of the CAs that are kept signed the leaf.
    LeafOfAnother,
    /// The leaf is not good for these names.
    LeafNames(Vec<String>),
    /// The CA that signs.
    Current(AuthorityError),
    /// The CA that will sign.
    Next(AuthorityError),
    /// The list of CAs to trust; why, in the parser's words.
    Bundle(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf(_) => f.write_str("the serving certificate cannot be used"),
            Self::LeafOfAnother => f.write_str("tls.crt was signed by none of the CAs that are kept"),
            Self::LeafNames(names) => write!(f, "tls.crt is not good for {}", names.join(", ")),
            Self::Current(_) => write!(f, "{} and {} cannot be used", CURRENT[0], CURRENT[1]),
            Self::Next(_) => write!(f, "{} and {} cannot be used", NEXT[0], NEXT[1]),
            Self::Bundle(why) => write!(f, "ca.crt is not a list of CAs: {why}"),
        }
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Leaf(source) => Some(source),
            Self::Current(source) | Self::Next(source) => Some(source),
            Self::LeafOfAnother | Self::LeafNames(_) | Self::Bundle(_) => None,
        }
    }
}

impl Kept {
    /// Reads contents; nothing at all is no problem, but a beginning.
    #[must_use]
    pub fn read(contents: &Contents, wanted: &[String], now: SystemTime) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let part = |name: &str| contents.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut authority = |names: [&str; 2], problem: fn(AuthorityError) -> Problem| {
            let (certificate, key) = (part(names[0]), part(names[1]));
            if certificate.is_empty() && key.is_empty() {
                return None;
            }
            let read = Authority::read(certificate, key);
            read.map_err(|error| problems.push(problem(error))).ok().map(Arc::new)
        };
        let current = authority(CURRENT, Problem::Current);
        let next = authority(NEXT, Problem::Next);
        let bundle = Bundle::read(part(BUNDLE));
        problems.extend(bundle.problem.map(Problem::Bundle));
        let signing: Vec<Id> = current.iter().chain(&next).map(|one| one.root().id).collect();
        let mut retired = bundle.roots;
        retired.retain(|root| !signing.contains(&root.id));
        retired.truncate(MAX_AUTHORITIES);
        let mut kept = Self { current, next, retired, leaf: None, leaves_end: leaves_end(part(LEAVES_END)) };
        let (certificate, key) = (part(CERTIFICATE), part(KEY));
        if !(certificate.is_empty() && key.is_empty()) {
            let material = Material {
                certificate: certificate.to_vec(),
                key: key.to_vec(),
                authority: part(BUNDLE).to_vec(),
            };
            match kept.read_leaf(material, wanted, now) {
                Ok(leaf) => {
                    if !leaf.missing.is_empty() {
                        problems.push(Problem::LeafNames(leaf.missing.clone()));
                    }
                    kept.leaf = Some(leaf);
                }
                Err(problem) => problems.push(problem),
            }
        }
        (kept, problems)
    }

    fn read_leaf(&self, material: Material, wanted: &[String], now: SystemTime) -> Result<KeptLeaf, Problem> {
        // The CAs were read before, and have their own problem.
        let alone = Material { authority: Vec::new(), ..material.clone() };
        let pair = Arc::new(Pair::parse(&alone, now).map_err(Problem::Leaf)?);
        let issuer = pair.names().first().and_then(|name| {
            let mut roots = self.roots();
            roots.find(|root| trust::verify(pair.chain(), &[root], name, now).is_ok()).map(|root| root.id)
        });
        let missing = wanted.iter().filter(|name| !pair.names().contains(name)).cloned().collect();
        Ok(KeptLeaf { issuer: issuer.ok_or(Problem::LeafOfAnother)?, material, pair, missing })
    }

    /// Every CA that is kept: current, next, retired.
    pub fn roots(&self) -> impl Iterator<Item = &Root> {
        self.current.iter().chain(&self.next).map(|one| one.root()).chain(&self.retired)
    }

    /// What the machine is told.
    #[must_use]
    pub fn state(&self, registration: Option<Registration>) -> State {
        let certificate = |one: &Option<Arc<Authority>>| one.as_ref().map(|one| one.root().certificate());
        State {
            current: certificate(&self.current),
            next: certificate(&self.next),
            retired: self
                .retired
                .iter()
                .map(|root| Retired { id: root.id, until: self.until(root) })
                .collect(),
            leaf: self.leaf.as_ref().map(|leaf| Leaf {
                certificate: Certificate::new(leaf.id(), leaf.pair.leaf()),
                issuer: leaf.issuer,
                names_suffice: leaf.missing.is_empty(),
            }),
            registration,
        }
    }

    /// When the last leaf of that CA ends; where nobody knows, when the CA ends.
    #[must_use]
    pub fn until(&self, root: &Root) -> SystemTime {
        let ends = root.validity.not_after;
        self.leaves_end.get(&root.id).map_or(ends, |until| ends.min(*until))
    }

    /// What is kept once the action is done; the same where it concerns somebody else.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn after(
        &self,
        action: &Action,
        trusted: &[Root],
        names: &ServingNames,
        plan: &Plan,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let mut kept = self.clone();
        match action {
            Action::Announce { adopt } => {
                kept.adopt(adopt, trusted);
                kept.next = Some(Arc::new(Authority::new(plan.authority, now)?));
            }
            Action::Adopt(adopt) => kept.adopt(adopt, trusted),
            Action::Promote => {
                let Some(next) = kept.next.take() else { return Ok(kept) };
                if let Some(old) = kept.current.replace(next) {
                    kept.retired.insert(0, old.root().clone());
                }
                kept.sign(names, plan, now)?;
            }
            Action::SignLeaf => kept.sign(names, plan, now)?,
            Action::Forget(gone) => kept.retired.retain(|root| !gone.contains(&root.id)),
            Action::Publish(_) | Action::Wait(_) => {}
        }
        let known: Vec<Id> = kept.roots().map(|root| root.id).collect();
        kept.leaves_end.retain(|id, _| known.contains(id));
        Ok(kept)
    }

    fn adopt(&mut self, adopt: &[Id], trusted: &[Root]) {
        let known: Vec<Id> = self.roots().map(|root| root.id).collect();
        let unknown = trusted.iter().filter(|root| adopt.contains(&root.id) && !known.contains(&root.id));
        self.retired.extend(unknown.cloned());
    }

    fn sign(&mut self, names: &ServingNames, plan: &Plan, now: SystemTime) -> Result<(), IssueError> {
        let Some(current) = &self.current else { return Ok(()) };
        let material = current.sign(names, plan.leaf, now)?;
        let pair = Pair::parse(&material, now).map_err(|source| IssueError::Leaf(Box::new(source)))?;
        let (issuer, ends) = (current.root().id, pair.leaf().not_after);
        let last = self.leaves_end.entry(issuer).or_insert(ends);
        *last = ends.max(*last);
        if let Some(old) = &self.leaf {
            // Of a CA that somebody else made, it is the last one that we know of.
            self.leaves_end.entry(old.issuer).or_insert(old.pair.leaf().not_after);
        }
        self.leaf = Some(KeptLeaf { material, pair: Arc::new(pair), issuer, missing: Vec::new() });
        Ok(())
    }

    /// The contents of the store.
    #[must_use]
    pub fn write(&self) -> Contents {
        let mut contents = Contents::new();
        // A Secret of type kubernetes.io/tls must have both, be they empty.
        let (certificate, key) = match &self.leaf {
            Some(leaf) => (leaf.material.certificate.clone(), leaf.material.key.clone()),
            None => Default::default(),
        };
        contents.insert(CERTIFICATE.to_owned(), certificate);
        contents.insert(KEY.to_owned(), key);
        contents.insert(BUNDLE.to_owned(), text(self.roots()).into_bytes());
        for (names, authority) in [(CURRENT, &self.current), (NEXT, &self.next)] {
            let Some(authority) = authority else { continue };
            contents.insert(names[0].to_owned(), authority.certificate_pem().into_bytes());
            contents.insert(names[1].to_owned(), authority.key_pem().into_bytes());
        }
        let ends: BTreeMap<String, u64> = self
            .leaves_end
            .iter()
            .map(|(id, until)| {
                let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                (format!("{:016x}", id.0), until.as_secs())
            })
            .collect();
        contents.insert(LEAVES_END.to_owned(), serde_json::to_vec(&ends).unwrap_or_default());
        contents
    }

    /// Every key of the store, so that those that are no longer written can be taken away.
    #[must_use]
    pub fn keys() -> [&'static str; 8] {
        [CERTIFICATE, KEY, BUNDLE, CURRENT[0], CURRENT[1], NEXT[0], NEXT[1], LEAVES_END]
    }
}

impl KeptLeaf {
    fn id(&self) -> Id {
        id(self.pair.chain().first().map(AsRef::as_ref).unwrap_or_default())
    }
}

/// What cannot be read is not known: such CAs stay until they end.
fn leaves_end(text: &[u8]) -> BTreeMap<Id, SystemTime> {
    let read: BTreeMap<String, u64> = serde_json::from_slice(text).unwrap_or_default();
    let entry = |(id, until): (String, u64)| {
        let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(until))?;
        Some((Id(u64::from_str_radix(&id, 16).ok()?), until))
    };
    read.into_iter().filter_map(entry).take(4 * MAX_AUTHORITIES).collect()
}
