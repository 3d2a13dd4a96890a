//! Rotation as a whole, over random schedules: several processes with clocks apart, a Secret and a registration that are
//! heard of late and each for itself, writes that race, crashes between any two of them, and people who delete and damage
//! things. `PROPTEST_CASES` gives the number of schedules; else it is 8, or 100 with `NODESTUB_FULL=1`.
//!
//! Certificates, signatures and verification are real; time, API server and processes are the model's. At every moment:
//!
//! 1. Whatever a process serves is taken by every API server, each of which acts on the registration of up to
//!    [`MOST_LAG`] ago. Excused are only moments at which somebody has damaged the registration itself.
//! 2. A process that has served goes on serving.
//!
//! And over a whole schedule both leaf and CA are renewed again and again.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nodestub_certs::ServingNames;
use nodestub_certs::bundle::{Bundle, Root, text};
use nodestub_certs::kept::{Contents, Kept};
use nodestub_certs::machine::{Action, Id, Plan, next};
use nodestub_certs::pair::Pair;
use nodestub_certs::sight::{Hook, Sight};
use nodestub_certs::trust;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOST: &str = "nodestub-webhook.nodestub-system.svc";
const PLAN: Plan =
    Plan { leaf: Duration::from_secs(24), authority: Duration::from_secs(72), grace: Duration::from_secs(1) };
/// How far behind an API server may be; below the grace.
const MOST_LAG: Duration = Duration::from_millis(800);
/// How late a process hears of a change at most.
const MOST_DEAF: Duration = Duration::from_millis(500);
/// Clocks are apart by a quarter of the leaf's life at most.
const MOST_AHEAD: i64 = 3000;
/// How far the clock of an API server is from the truth.
const SKEW: Duration = Duration::from_secs(1);
const PROCESSES: usize = 3;

fn names() -> ServingNames {
    ServingNames {
        service: "nodestub-webhook".to_owned(),
        namespace: "nodestub-system".to_owned(),
        cluster_domain: None,
        addresses: Vec::new(),
        extra: Vec::new(),
    }
}

/// What happens after some time has passed.
#[derive(Debug, Clone)]
enum Event {
    /// A process that may act decides, by what it has heard.
    Decide(usize),
    /// It writes what it decided, if nothing has changed since.
    Write(usize),
    /// It hears what the Secret is now; the two watches are apart.
    HearSecret(usize),
    /// It hears what the registration is now.
    HearBundle(usize),
    /// It dies, and starts again without any memory.
    Crash(usize),
    /// Its clock is put to so many milliseconds from the truth.
    Step(usize, i64),
    DeleteSecret,
    /// One key of the Secret, by number, gets another value.
    Damage(usize, Damage),
    /// The manifest is applied again, with an empty bundle.
    EmptyBundle,
    /// Somebody adds a CA of his own.
    ForeignBundle,
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Missing,
    Rubbish,
    /// The value of another key.
    Swapped,
}

fn event() -> impl Strategy<Value = (u64, Event)> {
    let process = || 0..PROCESSES;
    let damage = prop_oneof![Just(Damage::Missing), Just(Damage::Rubbish), Just(Damage::Swapped)];
    let event = prop_oneof![
        120 => process().prop_map(Event::Decide),
        120 => process().prop_map(Event::Write),
        60 => process().prop_map(Event::HearSecret),
        60 => process().prop_map(Event::HearBundle),
        3 => process().prop_map(Event::Crash),
        3 => (process(), -MOST_AHEAD..=MOST_AHEAD).prop_map(|(process, ahead)| Event::Step(process, ahead)),
        1 => Just(Event::DeleteSecret),
        2 => (0..8_usize, damage).prop_map(|(key, damage)| Event::Damage(key, damage)),
        1 => Just(Event::EmptyBundle),
        1 => Just(Event::ForeignBundle),
    ];
    (1..120_u64, event)
}

#[derive(Default)]
struct Process {
    /// Milliseconds.
    ahead: i64,
    /// When it last heard of Secret and registration.
    heard: (Duration, Duration),
    /// Their versions as they were heard; none before.
    versions: (Option<u64>, Option<u64>),
    secret: Contents,
    sight: Sight,
    offered: Option<Arc<Pair>>,
    served: Option<Arc<Pair>>,
    decided: Option<Decided>,
}

struct Decided {
    action: Action,
    by: (Option<u64>, Option<u64>),
    trusted: Vec<Root>,
    kept: Kept,
}

struct World {
    begin: (SystemTime, Instant),
    time: Duration,
    secret: (u64, Contents),
    /// Since when, the version, the text, and whether it is the work of somebody else.
    bundles: Vec<(Duration, u64, String, bool)>,
    processes: Vec<Process>,
    acted: Duration,
    done: Vec<&'static str>,
}

impl World {
    fn new() -> Self {
        Self {
            begin: (SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), Instant::now()),
            time: Duration::ZERO,
            secret: (0, Contents::new()),
            bundles: vec![(Duration::ZERO, 0, String::new(), true)],
            processes: (0..PROCESSES).map(|_| Process::default()).collect(),
            acted: Duration::ZERO,
            done: Vec::new(),
        }
    }

    fn at(&self) -> Instant {
        self.begin.1 + self.time
    }

    fn truth(&self) -> SystemTime {
        self.begin.0 + self.time
    }

    fn clock(&self, process: usize) -> SystemTime {
        let ahead = self.processes[process].ahead;
        let apart = MILLISECOND * u32::try_from(ahead.unsigned_abs()).unwrap();
        if ahead < 0 { self.truth() - apart } else { self.truth() + apart }
    }

    fn bundle(&self) -> &(Duration, u64, String, bool) {
        self.bundles.last().unwrap()
    }

    fn hooks(&self) -> Vec<Hook> {
        let bundle = Bundle::read(self.bundle().2.as_bytes());
        vec![Hook { name: "inject".to_owned(), host: HOST.to_owned(), bundle }]
    }

    fn set_bundle(&mut self, text: String, is_damage: bool) {
        let version = self.bundle().1 + 1;
        self.bundles.push((self.time, version, text, is_damage));
    }

    fn set_secret(&mut self, contents: Contents) {
        self.secret = (self.secret.0 + 1, contents);
    }

    fn hear(&mut self, process: usize) {
        self.hear_secret(process);
        self.hear_bundle(process);
    }

    fn hear_bundle(&mut self, process: usize) {
        let (at, hooks) = (self.at(), self.hooks());
        let (time, version) = (self.time, self.bundle().1);
        let one = &mut self.processes[process];
        one.heard.1 = time;
        one.versions.1 = Some(version);
        one.sight.see(hooks, at);
        self.serve(process);
    }

    fn hear_secret(&mut self, process: usize) {
        let (now, secret) = (self.clock(process), self.secret.1.clone());
        let (time, version) = (self.time, self.secret.0);
        let one = &mut self.processes[process];
        one.heard.0 = time;
        one.versions.0 = Some(version);
        if one.secret != secret {
            one.secret = secret;
            let (kept, _) = Kept::read(&one.secret, &[], now);
            if let Some(leaf) = kept.leaf {
                one.offered = Some(leaf.pair);
            }
        }
        self.serve(process);
    }

    /// Also when only time has passed.
    fn serve(&mut self, process: usize) {
        let (at, now) = (self.at(), self.clock(process));
        let one = &mut self.processes[process];
        if let Some(offered) = &one.offered
            && one.sight.prefer(offered, one.served.as_deref(), PLAN.grace, at, now).is_ok()
        {
            one.served = Some(Arc::clone(offered));
        }
    }

    /// By what the process has heard, however long ago.
    fn decide(&mut self, process: usize) {
        let (at, now) = (self.at(), self.clock(process));
        let one = &mut self.processes[process];
        if one.versions.0.is_none() || one.versions.1.is_none() {
            return;
        }
        let (kept, _) = Kept::read(&one.secret, &[], now);
        let action = next(&kept.state(Some(one.sight.registration(false, at))), &PLAN, now);
        let waits = matches!(action, Action::Wait(_));
        let (by, trusted) = (one.versions, one.sight.roots());
        one.decided = (!waits).then_some(Decided { action, by, trusted, kept });
    }

    /// Only over what was known when it was decided.
    fn write(&mut self, process: usize) {
        let now = self.clock(process);
        let Some(Decided { action, by, trusted, kept }) = self.processes[process].decided.take() else {
            return;
        };
        self.acted = self.time;
        if let Action::Publish(ids) = &action {
            if by.1 == Some(self.bundle().1) {
                let find = |id: &Id| kept.roots().find(|root| root.id == *id).unwrap();
                self.set_bundle(text(ids.iter().map(find)), false);
                self.done.push(action.label());
                return self.hear_bundle(process);
            }
        } else if by.0 == Some(self.secret.0) {
            let after = kept.after(&action, &trusted, &names(), &PLAN, now).unwrap();
            self.set_secret(after.write());
            self.done.push(action.label());
            return self.hear_secret(process);
        }
        // Refused: it looks what was faster.
        self.hear(process);
    }

    /// Whether Secret and registration both tell the same: what is lost from one is still in the other. Who damages
    /// both at once leaves nothing to mend by.
    fn is_whole(&self) -> bool {
        let (kept, _) = Kept::read(&self.secret.1, &[], self.truth());
        let trusted = Bundle::read(self.bundle().2.as_bytes()).roots;
        !self.bundle().3 && trusted.iter().all(|root| kept.roots().any(|known| known.id == root.id))
    }

    fn happen(&mut self, event: &Event) {
        let damages = matches!(event, Event::DeleteSecret | Event::Damage(..) | Event::EmptyBundle);
        if damages && !self.is_whole() {
            return;
        }
        match *event {
            Event::Decide(process) => self.decide(process),
            Event::Write(process) => self.write(process),
            Event::HearSecret(process) => self.hear_secret(process),
            Event::HearBundle(process) => self.hear_bundle(process),
            Event::Crash(process) => {
                let serving = self.processes.iter().filter(|one| one.served.is_some()).count();
                // One of those that serve lives on.
                if self.processes[process].served.is_none() || serving > 1 {
                    let ahead = self.processes[process].ahead;
                    let heard = (self.time, self.time);
                    self.processes[process] = Process { ahead, heard, ..Process::default() };
                }
            }
            Event::Step(process, ahead) => self.processes[process].ahead = ahead,
            Event::DeleteSecret => self.set_secret(Contents::new()),
            Event::Damage(key, damage) => self.damage(key, damage),
            Event::EmptyBundle => self.set_bundle(String::new(), true),
            Event::ForeignBundle => {
                let foreign =
                    nodestub_certs::Authority::new(PLAN.authority, self.truth()).unwrap().certificate_pem();
                let text = format!("# mine\n{foreign}{}", self.bundle().2);
                let damaged = self.bundle().3;
                self.set_bundle(text, damaged);
            }
        }
    }

    fn damage(&mut self, key: usize, damage: Damage) {
        let mut contents = self.secret.1.clone();
        let keys = Kept::keys();
        match damage {
            Damage::Missing => drop(contents.remove(keys[key])),
            Damage::Rubbish => {
                drop(contents.insert(keys[key].to_owned(), b"-----BEGIN nothing\n\0".to_vec()));
            }
            Damage::Swapped => {
                let other = contents.get(keys[(key + 2) % keys.len()]).cloned().unwrap_or_default();
                contents.insert(keys[key].to_owned(), other);
            }
        }
        self.set_secret(contents);
    }

    /// Nobody is deaf or idle for long: watches are heard, and somebody leads.
    fn keep_fair(&mut self) {
        for process in 0..PROCESSES {
            let heard = self.processes[process].heard;
            if heard.0 + MOST_DEAF <= self.time {
                self.hear_secret(process);
            }
            if heard.1 + MOST_DEAF <= self.time {
                self.hear_bundle(process);
            }
            self.serve(process);
        }
        if self.acted + MOST_DEAF <= self.time {
            self.acted = self.time;
            let process = usize::try_from(self.time.as_millis()).unwrap() % PROCESSES;
            for _ in 0..4 {
                self.decide(process);
                self.write(process);
            }
        }
    }

    fn check(&self, had_served: &mut [bool]) -> Result<(), TestCaseError> {
        let oldest = self.time.saturating_sub(MOST_LAG);
        // In force within the last moments: the newest that is older, and all since.
        let first = self.bundles.iter().rposition(|(since, ..)| *since <= oldest).unwrap_or(0);
        let in_force = &self.bundles[first..];
        for (process, one) in self.processes.iter().enumerate() {
            let Some(served) = &one.served else {
                prop_assert!(!had_served[process] || one.offered.is_none(), "{process} serves no more");
                had_served[process] = false;
                continue;
            };
            had_served[process] = true;
            for (since, version, text, is_damage) in in_force {
                if *is_damage {
                    continue;
                }
                let bundle = Bundle::read(text.as_bytes());
                let roots: Vec<&Root> = bundle.roots.iter().collect();
                // The API servers' own clocks are a little apart.
                let apart = if version % 2 == 0 { self.truth() - SKEW } else { self.truth() + SKEW };
                let verdict = trust::verify(served.chain(), &roots, HOST, apart);
                prop_assert!(
                    verdict.is_ok(),
                    "at {:?} process {process} (clock {} ms) is refused by bundle {version} of {since:?}: {}; {:?}",
                    self.time,
                    one.ahead,
                    verdict.unwrap_err(),
                    self.done
                );
            }
        }
        Ok(())
    }
}

#[test]
fn serves_at_every_moment_what_the_published_bundle_verifies() {
    let full = std::env::var_os("NODESTUB_FULL").is_some();
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(if full { 100 } else { 8 });
    let mut runner = TestRunner::new(Config {
        cases,
        max_shrink_iters: 64,
        failure_persistence: None,
        ..Config::default()
    });
    let totals = std::cell::RefCell::new(Vec::new());
    let schedules = proptest::collection::vec(event(), 900..1200);
    runner
        .run(&schedules, |schedule| {
            let mut world = World::new();
            let mut had_served = [false; PROCESSES];
            for (milliseconds, event) in &schedule {
                world.time += MILLISECOND * u32::try_from(*milliseconds).unwrap();
                world.happen(event);
                world.keep_fair();
                world.check(&mut had_served)?;
            }
            let spent = world.time.as_secs();
            let count = |label: &str| world.done.iter().filter(|done| **done == label).count() as u64;
            // A shrunk schedule may be too short for anything.
            if spent > 60 {
                prop_assert!(count("promote") >= spent / 72, "{} CAs in {spent} s", count("promote"));
                let leaves = count("sign_leaf") + count("promote");
                prop_assert!(leaves >= spent / 24, "{leaves} leaves in {spent} s");
                prop_assert!(world.processes.iter().any(|one| one.served.is_some()));
            }
            totals.borrow_mut().extend(world.done);
            Ok(())
        })
        .unwrap();
    let totals = totals.borrow();
    for label in Action::LABELS {
        let count = totals.iter().filter(|done| **done == label).count();
        println!("{label}: {count}");
        // A few schedules may be damaged too often for a CA to be retired in peace.
        assert!(count > 0 || (label == "forget" && !full), "{label} was never done");
    }
}
