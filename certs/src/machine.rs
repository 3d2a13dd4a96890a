//! What to do next about certificates: a pure function of what is kept, what the API server trusts, and the time.
//!
//! ```text
//!                 ┌───────┐ Announce: make a CA, adopt what is trusted   ┌───────────┐
//!      nothing ──►│ no CA │ ────────────────────────────────────────────►│ announced │◄──────────┐
//!  or only garbage└───────┘                                              └─────┬─────┘           │
//!                                the next CA has been trusted for GRACE,       │                 │ Announce, at two
//!                                or there is nothing to lose: Promote          │                 │ thirds of the
//!                                (it signs the leaf; the old one retires)      ▼                 │ CA's life
//!                                                                        ┌───────────┐           │
//!             at two thirds of the leaf's life, or when it lacks  ┌──────│  steady   │───────────┘
//!             a name: SignLeaf, by the same CA                    └─────►└─────┬─────┘
//!                                                                             │ the last leaf of a retired CA has
//!                                                                             ▼ ended: Publish without it, Forget
//!  at any time    Adopt     the API server trusts a CA that is not kept here: keep it for as long as it may be in use
//!                 Publish   the API server does not trust exactly what is kept: tell it
//!                 Wait      nothing until then
//! ```
//!
//! Invariants:
//! 1. No leaf is signed by a CA that the API server has not trusted for [`Plan::grace`], unless nothing could be lost.
//! 2. A CA that the API server trusts is taken from it only when its last leaf has ended, whoever published it.
//! 3. Renewal begins at two thirds of a life or a little earlier, never later: with clocks apart by a quarter of a life,
//!    a twelfth is left to serve the new one everywhere.
//! 4. Nothing depends on who asks, nor on how fresh what he knows is: every write is made only if what it changes is still
//!    what was known of it, and whoever knows too little adopts first, which then fails (`webhook/src/certificates`).
//!
//! How long a CA has been trusted is measured by each process for itself, from when it saw it, so no clock of another
//! is believed. Not here: keys, PEM, Kubernetes.

use std::time::{Duration, SystemTime};

use crate::pair::Validity;

/// CAs that are kept or trusted at the same time, at most. Three are usual: old, current, next.
pub const MAX_AUTHORITIES: usize = 8;

/// Renewal begins at this part of a life, in 240ths: two thirds.
const RENEW_AT: u32 = 160;
/// And up to this much earlier, by certificate, so that not everything that was made at once is renewed at once.
const JITTER: u32 = 16;
const PARTS: u32 = 240;

/// Tells certificates apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// A leaf's life.
    pub leaf: Duration,
    /// A CA's life.
    pub authority: Duration,
    /// How long the API servers may take until each of them acts on a caBundle that was written.
    pub grace: Duration,
}

/// A certificate that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// Which.
    pub id: Id,
    /// When it was made; later than its NotBefore, which lies back.
    pub made: SystemTime,
    /// When it ends.
    pub ends: SystemTime,
}

impl Certificate {
    /// Out of what stands in the certificate; ours begin [`crate::issue::BACKDATE`] before they were made.
    #[must_use]
    pub fn new(id: Id, validity: Validity) -> Self {
        let made = validity.not_before.checked_add(crate::issue::BACKDATE);
        let made = made.filter(|made| *made < validity.not_after).unwrap_or(validity.not_before);
        Self { id, made, ends: validity.not_after }
    }

    /// When its successor is due.
    #[must_use]
    pub fn renew(&self) -> SystemTime {
        let life = self.ends.duration_since(self.made).unwrap_or_default();
        let jitter = u32::try_from(self.id.0 % u64::from(JITTER)).unwrap_or(0);
        self.made.checked_add(life / PARTS * (RENEW_AT - jitter)).unwrap_or(self.ends)
    }

    fn is_over(&self, now: SystemTime) -> bool {
        self.ends <= now
    }
}

/// A CA that signs nothing any more, and is trusted for the sake of what it signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired {
    /// Which.
    pub id: Id,
    /// When the last leaf that it signed ends.
    pub until: SystemTime,
}

/// The leaf that is kept: whole, with its key, and signed by one of the CAs that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Itself.
    pub certificate: Certificate,
    /// Who signed it.
    pub issuer: Id,
    /// It is good for every name that is asked for.
    pub names_suffice: bool,
}

/// A CA that the API server is told to trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trusted {
    /// Which.
    pub id: Id,
    /// When it ends.
    pub ends: SystemTime,
    /// For how long every webhook of the registration has had it without a break, as far as this process has seen.
    pub everywhere_for: Option<Duration>,
}

/// What the API server is told to trust.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registration {
    /// The CAs of any of its webhooks, each once.
    pub trusted: Vec<Trusted>,
    /// The bundles differ, or hold what is no certificate, or too many of them.
    pub untidy: bool,
    /// It was lately refused to us to write it; until that is tried again, go on with the rest.
    pub refused: bool,
}

/// All that a decision is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The CA that signs, with its key.
    pub current: Option<Certificate>,
    /// The CA that will sign, with its key.
    pub next: Option<Certificate>,
    /// CAs that have signed.
    pub retired: Vec<Retired>,
    /// What is served.
    pub leaf: Option<Leaf>,
    /// None when there is no registration.
    pub registration: Option<Registration>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a CA and keep it as the next one; keep those, too, that are trusted and not known here.
    Announce {
        /// The unknown ones.
        adopt: Vec<Id>,
    },
    /// Keep CAs that are trusted and not known here: a leaf of theirs may be in use.
    Adopt(Vec<Id>),
    /// Tell the API server to trust exactly these.
    Publish(Vec<Id>),
    /// The next CA becomes the current one and signs a new leaf.
    Promote,
    /// The current CA signs a new leaf.
    SignLeaf,
    /// Drop retired CAs that are trusted no more.
    Forget(Vec<Id>),
    /// Nothing, until then or until something changes.
    Wait(SystemTime),
}

impl Action {
    /// Labels of what is done, for metrics.
    pub const LABELS: [&'static str; 6] = ["announce", "adopt", "publish", "promote", "sign_leaf", "forget"];

    /// A word for metrics and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Announce { .. } => "announce",
            Self::Adopt(_) => "adopt",
            Self::Publish(_) => "publish",
            Self::Promote => "promote",
            Self::SignLeaf => "sign_leaf",
            Self::Forget(_) => "forget",
            Self::Wait(_) => "wait",
        }
    }
}

/// The next thing to do. The first rule that applies wins.
#[must_use]
pub fn next(state: &State, plan: &Plan, now: SystemTime) -> Action {
    let current = state.current.filter(|one| !one.is_over(now));
    let coming = state.next.filter(|one| !one.is_over(now));
    let foreign = state.foreign(now);
    if current.is_none() && coming.is_none() {
        return Action::Announce { adopt: foreign };
    }
    if !foreign.is_empty() {
        return Action::Adopt(foreign);
    }
    if let Some(bundle) = state.to_publish(plan, now) {
        return Action::Publish(bundle);
    }
    let forgotten = state.forgotten(plan, now);
    if !forgotten.is_empty() {
        return Action::Forget(forgotten);
    }
    let is_due = current.is_none_or(|one| one.renew() <= now);
    if let Some(coming) = coming
        && is_due
        && state.may_use(coming.id, plan, now)
    {
        return Action::Promote;
    }
    // Before a leaf of the old CA: the sooner it is announced, the sooner it is trusted.
    if coming.is_none() && is_due {
        return Action::Announce { adopt: Vec::new() };
    }
    if let Some(current) = current
        && state.leaf_is_due(current.id, now)
        && state.may_use(current.id, plan, now)
    {
        return Action::SignLeaf;
    }
    Action::Wait(state.soonest(plan, now))
}

impl State {
    /// The CAs that clients should trust now, the one that signs first.
    #[must_use]
    pub fn bundle(&self, plan: &Plan, now: SystemTime) -> Vec<Id> {
        let signing = [self.current, self.next].into_iter().flatten().filter(|one| !one.is_over(now));
        let retired = self.retired.iter().filter(|one| !one.is_gone(plan, now));
        signing.map(|one| one.id).chain(retired.map(|one| one.id)).take(MAX_AUTHORITIES).collect()
    }

    fn knows(&self, id: Id) -> bool {
        let mut signing = self.current.iter().chain(&self.next);
        signing.any(|one| one.id == id) || self.retired.iter().any(|one| one.id == id)
    }

    /// CAs that are trusted and in their time, but not known here; as many as there is room for.
    fn foreign(&self, now: SystemTime) -> Vec<Id> {
        let Some(registration) = &self.registration else { return Vec::new() };
        // One place is left for a CA that is still to be made.
        let kept = self.retired.len() + usize::from(self.current.is_some()) + 1;
        let room = MAX_AUTHORITIES.saturating_sub(kept);
        let unknown = registration.trusted.iter().filter(|one| one.ends > now && !self.knows(one.id));
        unknown.map(|one| one.id).take(room).collect()
    }

    fn to_publish(&self, plan: &Plan, now: SystemTime) -> Option<Vec<Id>> {
        let registration = self.registration.as_ref().filter(|one| !one.refused)?;
        let bundle = self.bundle(plan, now);
        let missing = bundle
            .iter()
            .any(|id| !registration.trusted.iter().any(|one| one.id == *id && one.everywhere_for.is_some()));
        let too_many = registration.trusted.iter().any(|one| !bundle.contains(&one.id));
        (!bundle.is_empty() && (missing || too_many || registration.untidy)).then_some(bundle)
    }

    fn forgotten(&self, plan: &Plan, now: SystemTime) -> Vec<Id> {
        let trusted = |id: Id| {
            let registration = self.registration.as_ref();
            registration.is_some_and(|one| one.trusted.iter().any(|trusted| trusted.id == id))
        };
        let gone = self.retired.iter().filter(|one| one.is_gone(plan, now) && !trusted(one.id));
        gone.map(|one| one.id).collect()
    }

    /// Whether a leaf of this CA may be served without anybody refusing it.
    fn may_use(&self, id: Id, plan: &Plan, now: SystemTime) -> bool {
        let Some(registration) = &self.registration else { return true };
        let found = registration.trusted.iter().find(|one| one.id == id);
        let steadily = found.and_then(|one| one.everywhere_for).is_some_and(|time| time >= plan.grace);
        steadily || self.has_nothing_to_lose(registration, id, now)
    }

    /// Nobody is trusted whose leaf could be in use, whether we know of that leaf or not.
    fn has_nothing_to_lose(&self, registration: &Registration, id: Id, now: SystemTime) -> bool {
        let others = registration.trusted.iter().filter(|one| one.id != id && one.ends > now);
        let works = self.leaf.is_some_and(|leaf| {
            !leaf.certificate.is_over(now) && registration.trusted.iter().any(|one| one.id == leaf.issuer)
        });
        !works && others.count() == 0
    }

    fn leaf_is_due(&self, current: Id, now: SystemTime) -> bool {
        self.leaf.is_none_or(|leaf| {
            !leaf.names_suffice
                || leaf.issuer != current
                || leaf.certificate.is_over(now)
                // What is cut to the end of its CA cannot be made longer by the same CA.
                || (leaf.certificate.renew() <= now && !self.ends_with(leaf))
        })
    }

    /// Whether a new leaf of the same CA would end no later.
    fn ends_with(&self, leaf: Leaf) -> bool {
        self.current.is_some_and(|ca| ca.id == leaf.issuer && ca.ends <= leaf.certificate.ends)
    }

    /// The next moment at which time alone changes what is to be done; never now.
    fn soonest(&self, plan: &Plan, now: SystemTime) -> SystemTime {
        let signing = [self.current, self.next].into_iter().flatten();
        let leaf = self.leaf.iter().map(|leaf| leaf.certificate);
        let retired = self.retired.iter().map(|one| one.until + plan.grace);
        let waiting = self.registration.iter().flat_map(|one| &one.trusted).filter_map(|one| {
            let left = plan.grace.checked_sub(one.everywhere_for?).filter(|left| !left.is_zero())?;
            now.checked_add(left)
        });
        let moments =
            signing.chain(leaf).flat_map(|one| [one.renew(), one.ends]).chain(retired).chain(waiting);
        let far = now + Duration::from_secs(60 * 60);
        moments.filter(|moment| *moment > now).min().unwrap_or(far).min(far)
    }
}

impl Retired {
    fn is_gone(&self, plan: &Plan, now: SystemTime) -> bool {
        self.until.checked_add(plan.grace).is_some_and(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn renews_at_two_thirds_of_a_life_or_a_little_earlier_and_not_everything_at_once() {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let life = Duration::from_secs(240 * 60);
        let renewals: BTreeSet<SystemTime> =
            (0..100).map(|id| Certificate { id: Id(id), made, ends: made + life }.renew()).collect();
        assert!(renewals.len() > 10, "{} moments for a hundred certificates", renewals.len());
        assert!(renewals.iter().all(|at| *at >= made + life * 3 / 5 && *at <= made + life * 2 / 3));
    }
}
