//! Whether the kernel's fail-open works on this node: tried by a query of our own, kept, and told.
//!
//! ```text
//!   after set-up, after each repair ─┐
//!   after a failure: 1 s, 2 s .. 60 s├─► one query for each address ─► [`Finding`] ─► metrics, /ready, a line on a change
//!   while it works: every minute    ─┘       (nodestub_dataplane::proof)
//! ```
//!
//! How the query goes is `nodestub_dataplane::proof`'s. What is asked is something that every cluster DNS answers by itself:
//! the SOA record of the cluster's domain, or where that is not known `version.bind` of class CHAOS, which CoreDNS refuses on
//! the spot. Any response with the id and the question counts, whatever it says: somebody was there.
//!
//! A resolver is ready whether fail-open works or not: it answers all the same. Who has to know whether pods of this node can
//! do without a second nameserver asks [`Proof::is_proven`] (metric `nodestub_fail_open_proven`).

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nodestub_dataplane::desired::OffReason;
use nodestub_dataplane::proof::{Passage, Question, Why, try_fail_open};
use nodestub_dataplane::{Desired, FailOpen};
use nodestub_wire::{Ask, CLASS_IN, Name, Reply, rtype};
use rand::Rng;
use tokio::sync::Notify;

/// How long each of three datagrams waits for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Pause while it works, and the longest one after failures; up to a quarter is added, so that nodes do not ask together.
const PAUSE: Duration = Duration::from_secs(60);
const TYPE_TXT: u16 = 16;
/// Class CHAOS.
const CLASS_CH: u16 = 3;
/// `version.bind`, in wire form.
const VERSION_BIND: &[u8] = b"\x07version\x04bind\x00";

/// What is known about fail-open to one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not tried yet.
    Untried,
    /// The last query was answered.
    Works,
    /// The last query was not answered.
    Broken(Why),
    /// It cannot be tried here; that says nothing about pods. Why, for people.
    Unknown(String),
    /// It is off: queries are refused.
    Off(OffReason),
}

impl State {
    /// All labels.
    pub const LABELS: [&'static str; 5] = ["works", "broken", "untried", "unknown", "off"];

    /// Its label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Broken(_) => "broken",
            Self::Untried => "untried",
            Self::Unknown(_) => "unknown",
            Self::Off(_) => "off",
        }
    }
}

/// Where one address stands.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The address that pods ask.
    pub address: IpAddr,
    /// Where its queries should go while nobody listens.
    pub to: FailOpen,
    /// What is known.
    pub state: State,
    /// Since when its label has been that.
    pub since: Instant,
    /// When a query was answered last.
    pub answered: Option<SystemTime>,
    /// Tries so far, by result: see [`Finding::RESULTS`].
    pub tries: [u64; 3],
}

impl Finding {
    /// How a try ends, in metrics.
    pub const RESULTS: [&'static str; 3] = ["answered", "silent", "impossible"];

    fn new(address: IpAddr, to: FailOpen) -> Self {
        let state = match to {
            FailOpen::Off(reason) => State::Off(reason),
            FailOpen::To(_) | FailOpen::KubeProxy => State::Untried,
        };
        Self { address, to, state, since: Instant::now(), answered: None, tries: [0; 3] }
    }

    /// Where its queries should go, as a label: an address, `kube-proxy` or `nowhere`.
    pub fn target(&self) -> String {
        match self.to {
            FailOpen::To(target) => target.to_string(),
            FailOpen::KubeProxy => "kube-proxy".to_owned(),
            FailOpen::Off(_) => "nowhere".to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fail-open {} to {}: ", self.address, self.target())?;
        let seconds = self.since.elapsed().as_secs();
        match &self.state {
            State::Untried => f.write_str("not tried yet"),
            State::Works => write!(f, "works, for {seconds} s"),
            State::Broken(why) => write!(f, "does not work, for {seconds} s: {why}"),
            State::Unknown(why) => write!(f, "cannot be tried here: {why}"),
            State::Off(reason) => write!(f, "off: {reason}"),
        }
    }
}

/// What is known about all addresses.
#[derive(Debug, Default)]
pub struct Proof {
    kept: Mutex<Kept>,
    due: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    desired: Option<Desired>,
    in_place: bool,
    /// The cluster's domain.
    domain: Option<Name>,
    findings: Vec<Finding>,
}

impl Proof {
    /// From now on this is wished, and to be tried soon. `in_place`: the rules are; without, there is nothing to try. What is
    /// known of an address whose target stays is kept.
    pub fn set(&self, desired: Option<Desired>, domain: Option<Name>, in_place: bool) {
        let mut kept = self.lock();
        kept.in_place = in_place;
        let wished: Vec<_> = desired.iter().flat_map(Desired::fail_open).collect();
        let before = std::mem::take(&mut kept.findings);
        let find = |(address, to)| {
            let same = before.iter().find(|one| one.address == address && one.to == to);
            same.cloned().unwrap_or_else(|| Finding::new(address, to))
        };
        kept.findings = wished.into_iter().map(find).collect();
        kept.desired = desired;
        kept.domain = domain;
        drop(kept);
        self.try_soon();
    }

    /// Something changed: what was found may not hold any more.
    pub fn try_soon(&self) {
        self.due.notify_one();
    }

    /// Where each address stands.
    pub fn findings(&self) -> Vec<Finding> {
        self.lock().findings.clone()
    }

    /// Whether the last query to each address was answered: pods of this node can do without another nameserver. False where
    /// there is no address, where it is off for one, and where it cannot be tried.
    pub fn is_proven(&self) -> bool {
        let kept = self.lock();
        !kept.findings.is_empty() && kept.findings.iter().all(|one| one.state == State::Works)
    }

    /// Tries for ever; not while this process is not `in_charge`, for a newer one may have other rules.
    pub async fn keep_trying(&self, in_charge: impl Fn() -> bool) {
        let mut pause = FIRST_PAUSE;
        loop {
            let jitter = pause.mul_f64(rand::rng().random_range(0.0..=0.25));
            tokio::select! {
                () = tokio::time::sleep(pause + jitter) => pause = (pause * 2).min(PAUSE),
                () = self.due.notified() => pause = FIRST_PAUSE,
            }
            if in_charge() && self.try_all().await {
                pause = PAUSE;
            }
        }
    }

    /// Tries each address once. True: none of them is broken.
    async fn try_all(&self) -> bool {
        let (desired, domain, in_place) = {
            let kept = self.lock();
            (kept.desired.clone(), kept.domain.clone(), kept.in_place)
        };
        let Some(desired) = desired else { return true };
        let covered = desired.fail_open().filter(|(_, to)| !matches!(to, FailOpen::Off(_)));
        let mut settled = true;
        for (address, to) in covered {
            let state = if in_place {
                try_one(&desired, address, domain.as_ref()).await
            } else {
                State::Unknown("the rules are not in place, see the log".to_owned())
            };
            settled &= !matches!(state, State::Broken(_));
            self.note(address, to, state);
        }
        settled
    }

    /// Keeps what was found, and says so where it is something else than before.
    fn note(&self, address: IpAddr, to: FailOpen, state: State) {
        let mut kept = self.lock();
        // Meanwhile another wish may be in force.
        let Some(finding) = kept.findings.iter_mut().find(|one| one.address == address && one.to == to)
        else {
            return;
        };
        let result = match state {
            State::Works => 0,
            State::Unknown(_) => 2,
            State::Broken(_) | State::Untried | State::Off(_) => 1,
        };
        if let Some(count) = finding.tries.get_mut(result) {
            *count += 1;
        }
        if state == State::Works {
            finding.answered = Some(SystemTime::now());
        }
        let changed = finding.state.label() != state.label();
        finding.state = state;
        if changed {
            finding.since = Instant::now();
            let to = finding.target();
            match &finding.state {
                State::Broken(why) => {
                    tracing::warn!(
                        %address, to, %why,
                        "kernel fail-open does not work: while nobody listens, pods need a second nameserver"
                    );
                }
                State::Unknown(why) => {
                    tracing::warn!(%address, to, %why, "kernel fail-open cannot be tried here; it may work all the same");
                }
                State::Works | State::Untried | State::Off(_) => {
                    tracing::info!(%address, to, "kernel fail-open works: a query of our own was answered");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn try_one(desired: &Desired, address: IpAddr, domain: Option<&Name>) -> State {
    let ask = ask(domain);
    let id: u16 = rand::rng().random();
    let query = ask.to_packet(id, false);
    let is_answer = |packet: &[u8]| answers(packet, id, &ask);
    let question = Question { query: &query, is_answer: &is_answer, patience: PATIENCE };
    match try_fail_open(desired, address, question).await {
        Ok(Passage::Open) => State::Works,
        Ok(Passage::Closed(why)) => State::Broken(why),
        Err(obstacle) => State::Unknown(obstacle.to_string()),
    }
}

/// Something that a cluster DNS answers without asking anybody.
fn ask(domain: Option<&Name>) -> Ask {
    let (name, qtype, qclass) = match domain {
        Some(domain) => (domain.as_bytes(), rtype::SOA, CLASS_IN),
        None => (VERSION_BIND, TYPE_TXT, CLASS_CH),
    };
    Ask {
        name: name.into(),
        qtype,
        qclass,
        recursion_desired: true,
        checking_disabled: false,
        dnssec_ok: false,
        options: Box::default(),
    }
}

/// Whether it is a response to this very question, whatever it says.
fn answers(packet: &[u8], id: u16, ask: &Ask) -> bool {
    Reply::parse(packet).is_ok_and(|reply| {
        reply.header.id == id
            && *reply.name.as_bytes() == *ask.name
            && reply.qtype == ask.qtype
            && reply.qclass == ask.qclass
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn desired(target: &str) -> Desired {
        let local = [ip("169.254.20.10"), ip("fd00::a")];
        let desired = Desired::new(&local, "nodestub", NonZeroU16::new(53).unwrap(), None).unwrap();
        desired.with_fallback(local[0], ip(target)).unwrap()
    }

    #[test]
    fn only_a_response_to_the_very_question_counts_and_any_such_one_does() {
        let domain: Name = "cluster.local".parse().unwrap();
        for ask in [ask(Some(&domain)), ask(None)] {
            let query = ask.to_packet(7, false);
            assert!(!answers(&query, 7, &ask), "a query is no response");
            let mut refused = query.clone();
            refused[2] |= 0x80;
            refused[3] = 5;
            assert!(answers(&refused, 7, &ask));
            assert!(!answers(&refused, 8, &ask), "another id");
            let mut other = refused.clone();
            other[14] ^= 1;
            assert!(!answers(&other, 7, &ask), "another name");
            assert!(!answers(&refused[..11], 7, &ask));
        }
    }

    #[test]
    fn a_node_is_proven_only_when_every_address_was_seen_to_work() {
        let proof = Proof::default();
        assert!(!proof.is_proven());
        proof.set(Some(desired("10.96.0.10")), None, true);
        let (v4, to) = (ip("169.254.20.10"), FailOpen::To(ip("10.96.0.10")));
        proof.note(v4, to, State::Works);
        assert!(!proof.is_proven(), "it is off for the other address");
        let both = desired("10.96.0.10").with_fallback(ip("fd00::a"), ip("fd00::10")).unwrap();
        proof.set(Some(both), None, true);
        assert!(!proof.is_proven(), "the other one is not tried yet");
        proof.note(ip("fd00::a"), FailOpen::To(ip("fd00::10")), State::Works);
        assert!(proof.is_proven());
        proof.note(v4, to, State::Broken(Why::Silence));
        assert!(!proof.is_proven());
        let text: Vec<String> = proof.findings().iter().map(ToString::to_string).collect();
        assert!(text[0].starts_with("fail-open 169.254.20.10 to 10.96.0.10: does not work"), "{text:?}");
        assert!(text[1].starts_with("fail-open fd00::a to fd00::10: works"), "{text:?}");
    }

    #[test]
    fn what_is_known_is_kept_while_the_target_stays_and_a_late_result_for_another_is_dropped() {
        let proof = Proof::default();
        let address = ip("169.254.20.10");
        proof.set(Some(desired("10.96.0.10")), None, true);
        proof.note(address, FailOpen::To(ip("10.96.0.10")), State::Works);
        proof.set(Some(desired("10.96.0.10")), None, true);
        assert_eq!(proof.findings()[0].state, State::Works);
        proof.set(Some(desired("10.96.0.11")), None, true);
        assert_eq!(proof.findings()[0].state, State::Untried);
        proof.note(address, FailOpen::To(ip("10.96.0.10")), State::Works);
        assert_eq!(proof.findings()[0].state, State::Untried);
        assert_eq!(proof.findings()[0].tries, [0; 3]);
    }
}
