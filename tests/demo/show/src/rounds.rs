//! The same names, resolved again and again, and what the resolver's counters say of each time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nodestub_demo::terminal::printable;
use nodestub_lab::{Error, Options, Pod, ask};

use crate::metrics::sum;
use crate::process::LOOK;
use crate::resolv_conf::ResolvConf;
use crate::scene::{HOGE, OUTSIDE_ADDRESS, OUTSIDE_NAME, Scene, services};

/// A name to ask for, and what it must come to; `None`: it does not exist.
pub(crate) type Wanted = (&'static str, Option<Ipv4Addr>);

/// The names, in order.
pub(crate) const NAMES: [Wanted; 4] = [
    ("hoge.default.svc.cluster.local", Some(HOGE)),
    ("hoge", Some(HOGE)),
    (OUTSIDE_NAME, Some(OUTSIDE_ADDRESS)),
    ("nobody.example.com", None),
];

/// For counters to catch up with answers that were given: they are written after them.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What a name came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The first address.
    Address(String),
    /// There is no such name.
    None,
    /// Something else.
    Failed(String),
}

/// A name that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// What it came to.
    pub(crate) outcome: Outcome,
    /// The whole time, as a program sees it.
    pub(crate) took: Duration,
}

/// All names, once.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// In the order of [`NAMES`].
    pub(crate) asked: Vec<Asked>,
    /// What the resolver counted meanwhile.
    pub(crate) counted: Counters,
}

/// Counters of the node's resolver, or their growth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Counters {
    /// Questions answered.
    pub(crate) questions: f64,
    /// From the cache.
    pub(crate) hits: f64,
    /// Passed on to the cluster DNS.
    pub(crate) misses: f64,
    /// Answers that say that something broke.
    pub(crate) failures: f64,
    /// From a question's arrival to its answer, all together.
    pub(crate) seconds: f64,
}

impl Counters {
    fn of(page: &str) -> Self {
        Self {
            questions: sum(page, "coredns_dns_requests_total", &[]),
            hits: sum(page, "coredns_cache_hits_total", &[]),
            misses: sum(page, "coredns_cache_misses_total", &[]),
            failures: sum(page, "coredns_dns_responses_total", &[("rcode", "SERVFAIL")]),
            seconds: sum(page, "coredns_dns_request_duration_seconds_sum", &[]),
        }
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            questions: self.questions - earlier.questions,
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            failures: self.failures - earlier.failures,
            seconds: self.seconds - earlier.seconds,
        }
    }

    /// The resolver's own time for one question.
    pub(crate) fn mean(self) -> Duration {
        Duration::try_from_secs_f64(self.seconds / self.questions).unwrap_or_default()
    }
}

/// How names are resolved: by the system's library in the pod, or, on loopback, by the laboratory's client.
pub(crate) struct Asker<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) pod: Option<&'a Pod>,
    pub(crate) resolv_conf: &'a ResolvConf,
    pub(crate) namespace: &'a str,
}

impl Asker<'_> {
    /// Asks for all names once.
    pub(crate) fn round(&self) -> Result<Round, Error> {
        let before = Counters::of(&self.scene.metrics_page()?);
        let asked = NAMES.iter().map(|(name, _)| self.resolve(name)).collect::<Result<Vec<_>, _>>()?;
        let expected = self.questions();
        let end = Instant::now() + CATCH_UP;
        loop {
            let counted = Counters::of(&self.scene.metrics_page()?).since(before);
            if counted.questions >= expected || Instant::now() >= end {
                return Ok(Round { asked, counted });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Questions that a round takes: the library asks for one candidate after the other until one exists.
    pub(crate) fn questions(&self) -> f64 {
        let count: usize =
            NAMES.iter().map(|(name, _)| questions(self.resolv_conf, self.namespace, name)).sum();
        u32::try_from(count).map_or(f64::MAX, f64::from)
    }

    /// What `getent` itself takes, for a name that needs no DNS: the best of a few. `None` on loopback.
    pub(crate) fn idle(&self) -> Result<Option<Duration>, Error> {
        const TRIES: usize = 3;
        let Some(pod) = self.pod else { return Ok(None) };
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            let began = Instant::now();
            pod.output(getent("localhost"))?;
            best = best.min(began.elapsed());
        }
        Ok(Some(best))
    }

    fn resolve(&self, name: &str) -> Result<Asked, Error> {
        let began = Instant::now();
        let outcome = match self.pod {
            Some(pod) => by_library(pod, name)?,
            None => self.by_client(name)?,
        };
        Ok(Asked { outcome, took: began.elapsed() })
    }

    fn by_client(&self, name: &str) -> Result<Outcome, Error> {
        for candidate in self.resolv_conf.candidates(name) {
            let answer = ask(self.scene.endpoints.resolver, &candidate, "A", &Options::default())?;
            match (answer.rcode.as_str(), answer.data().last()) {
                ("NOERROR", Some(address)) => return Ok(Outcome::Address((*address).to_owned())),
                ("NOERROR" | "NXDOMAIN", _) => {}
                (other, _) => return Ok(Outcome::Failed(format!("{candidate} {other}"))),
            }
        }
        Ok(Outcome::None)
    }
}

fn by_library(pod: &Pod, name: &str) -> Result<Outcome, Error> {
    /// What getent returns when a key was not found.
    const NOT_FOUND: i32 = 2;
    let output = pod.output(getent(name))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(match (output.status.code(), text.split_whitespace().next()) {
        (Some(0), Some(address)) => Outcome::Address(printable(address)),
        (Some(NOT_FOUND), _) => Outcome::None,
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            Outcome::Failed(printable(&format!("getent: {}: {}", output.status, said.trim())))
        }
    })
}

/// IPv4 only, so that one candidate is one question.
fn getent(name: &str) -> Command {
    let mut command = Command::new("getent");
    command.args(["ahostsv4", name]).env_remove("LOCALDOMAIN").env_remove("RES_OPTIONS");
    command.process_group(0);
    command
}

fn questions(resolv_conf: &ResolvConf, namespace: &str, name: &str) -> usize {
    let services: BTreeMap<_, _> = services(namespace).into_iter().collect();
    let exists = |candidate: &str| {
        let name = candidate.trim_end_matches('.');
        name == OUTSIDE_NAME || services.contains_key(name)
    };
    let candidates = resolv_conf.candidates(name);
    candidates.iter().position(|candidate| exists(candidate)).map_or(candidates.len(), |place| place + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_how_many_questions_a_name_takes() {
        let domains = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        let resolv_conf = ResolvConf {
            nameservers: Vec::new(),
            searches: domains.map(str::to_owned).to_vec(),
            options: vec!["ndots:5".to_owned()],
        };
        let asked = NAMES.map(|(name, _)| questions(&resolv_conf, "default", name));
        assert_eq!(asked, [4, 1, 4, 4]);
    }

    #[test]
    fn reads_what_a_round_has_added_to_the_counters() {
        let page = |questions: u32, hits: u32| {
            Counters::of(&format!(
                "coredns_dns_requests_total{{type=\"A\"}} {questions}\ncoredns_cache_hits_total{{type=\"denial\"}} {hits}\n\
                 coredns_dns_request_duration_seconds_sum{{zone=\".\"}} {}\n",
                f64::from(questions) * 0.25
            ))
        };
        let grown = page(5, 4).since(page(3, 2));
        assert!((grown.questions - 2.0).abs() < 1e-9 && (grown.hits - 2.0).abs() < 1e-9);
        assert_eq!(grown.mean(), Duration::from_millis(250));
        // Nothing asked: no time, and no division by zero.
        assert_eq!(page(1, 1).since(page(1, 1)).mean(), Duration::ZERO);
    }
}
