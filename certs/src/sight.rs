//! What this process has seen the API server trust, and since when; and which pair to serve, by that.
//!
//! A Secret and a registration cannot change at the same moment, and neither is heard of everywhere at once. So a
//! process exchanges its certificate only for one that the API server has trusted for a while, as long as the one that
//! it serves is still good.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use crate::bundle::{Bundle, Root};
use crate::machine::{Id, Registration, Trusted};
use crate::pair::Pair;
use crate::trust::{self, TrustError};

/// One webhook of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// What the API server asks the certificate for.
    pub host: String,
    /// Whom it trusts there.
    pub bundle: Bundle,
}

/// A registration as it was seen.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    hooks: Vec<Hook>,
    /// When a CA was first seen in every webhook, without a break since.
    since: BTreeMap<Id, Instant>,
}

/// Which webhook would not take a certificate, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Distrust {
    /// The webhook's name.
    pub hook: String,
    /// Why.
    pub source: TrustError,
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server does not trust us by the caBundle of {}", self.hook)
    }
}

impl std::error::Error for Distrust {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Sight {
    /// Takes what is seen at that moment.
    pub fn see(&mut self, hooks: Vec<Hook>, at: Instant) {
        let everywhere = |id: Id| hooks.iter().all(|hook| hook.bundle.roots.iter().any(|root| root.id == id));
        let ids = hooks.iter().flat_map(|hook| &hook.bundle.roots).map(|root| root.id);
        let since =
            ids.filter(|id| everywhere(*id)).map(|id| (id, self.since.get(&id).copied().unwrap_or(at)));
        self.since = since.collect();
        self.hooks = hooks;
    }

    /// The webhooks.
    #[must_use]
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Every CA of any webhook, each once.
    #[must_use]
    pub fn roots(&self) -> Vec<Root> {
        let mut roots: Vec<Root> = Vec::new();
        for root in self.hooks.iter().flat_map(|hook| &hook.bundle.roots) {
            if !roots.iter().any(|known| known.id == root.id) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// What the machine is told.
    #[must_use]
    pub fn registration(&self, refused: bool, at: Instant) -> Registration {
        let trusted = |root: &Root| Trusted {
            id: root.id,
            ends: root.validity.not_after,
            everywhere_for: self.since.get(&root.id).map(|since| at.saturating_duration_since(*since)),
        };
        let untidy = self
            .hooks
            .iter()
            .any(|hook| hook.bundle.problem.is_some() || hook.bundle.roots.len() != self.since.len());
        Registration { trusted: self.roots().iter().map(trusted).collect(), untidy, refused }
    }

    /// Whether every webhook takes that pair, by CAs that were seen for at least so long.
    ///
    /// # Errors
    /// The first webhook that does not, and why.
    pub fn verify(
        &self,
        pair: &Pair,
        seen_for: Duration,
        at: Instant,
        now: SystemTime,
    ) -> Result<(), Distrust> {
        let steady = |root: &&Root| {
            seen_for.is_zero()
                || self
                    .since
                    .get(&root.id)
                    .is_some_and(|since| at.saturating_duration_since(*since) >= seen_for)
        };
        for hook in &self.hooks {
            let roots: Vec<&Root> = hook.bundle.roots.iter().filter(steady).collect();
            trust::verify(pair.chain(), &roots, &hook.host, now)
                .map_err(|source| Distrust { hook: hook.name.clone(), source })?;
        }
        Ok(())
    }

    /// Whether to serve the offered pair instead of the one that is served.
    ///
    /// # Errors
    /// Why the API server would refuse the offered one today, while it takes the other. Ask again later.
    pub fn prefer(
        &self,
        offered: &Pair,
        served: Option<&Pair>,
        grace: Duration,
        at: Instant,
        now: SystemTime,
    ) -> Result<(), Distrust> {
        let Err(distrust) = self.verify(offered, grace, at, now) else { return Ok(()) };
        let Some(served) = served.filter(|served| served.leaf().contains(now)) else { return Ok(()) };
        match self.verify(served, Duration::ZERO, at, now) {
            Ok(()) => Err(distrust),
            // Neither is better: what the store holds is what is meant.
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::issue::ServingNames;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    fn pair(authority: &Authority, now: SystemTime) -> Pair {
        let names = ServingNames {
            service: "web".to_owned(),
            namespace: "here".to_owned(),
            cluster_domain: None,
            addresses: Vec::new(),
            extra: Vec::new(),
        };
        Pair::parse(&authority.sign(&names, HOUR, now).unwrap(), now).unwrap()
    }

    fn hook(name: &str, roots: &[&Authority]) -> Hook {
        let roots = roots.iter().map(|one| one.root().clone()).collect();
        Hook {
            name: name.to_owned(),
            host: "web.here.svc".to_owned(),
            bundle: Bundle { roots, problem: None },
        }
    }

    #[test]
    fn counts_the_time_that_every_webhook_has_had_a_ca() {
        let (now, start) = (SystemTime::now(), Instant::now());
        let (old, new) = (Authority::new(HOUR, now).unwrap(), Authority::new(HOUR, now).unwrap());
        let mut sight = Sight::default();
        sight.see(vec![hook("a", &[&old]), hook("b", &[&old, &new])], start);
        sight.see(vec![hook("a", &[&old, &new]), hook("b", &[&old, &new])], start + SECOND);
        let time = |sight: &Sight, authority: &Authority| {
            let registration = sight.registration(false, start + SECOND * 3);
            let mut trusted = registration.trusted.iter();
            trusted.find(|one| one.id == authority.root().id).unwrap().everywhere_for
        };
        assert_eq!(time(&sight, &old), Some(SECOND * 3));
        assert_eq!(time(&sight, &new), Some(SECOND * 2));
        assert!(!sight.registration(false, start).untidy);
        sight.see(vec![hook("a", &[&old]), hook("b", &[&old, &new])], start + SECOND * 3);
        assert_eq!(time(&sight, &new), None);
        assert!(sight.registration(false, start).untidy);
    }

    #[test]
    fn exchanges_a_good_pair_only_for_one_that_has_been_trusted_for_a_while() {
        let (now, start) = (SystemTime::now(), Instant::now());
        let (old, new) = (Authority::new(HOUR, now).unwrap(), Authority::new(HOUR, now).unwrap());
        let (served, offered) = (pair(&old, now), pair(&new, now));
        let mut sight = Sight::default();
        let prefers = |sight: &Sight, served: Option<&Pair>, at: Instant, now: SystemTime| {
            sight.prefer(&offered, served, SECOND, at, now).is_ok()
        };
        assert!(prefers(&sight, Some(&served), start, now), "nobody is registered");
        sight.see(vec![hook("a", &[&old])], start);
        assert!(!prefers(&sight, Some(&served), start + HOUR / 2, now), "only the old one is trusted");
        assert!(prefers(&sight, None, start, now), "there is nothing else");
        sight.see(vec![hook("a", &[&old, &new])], start + SECOND);
        assert!(!prefers(&sight, Some(&served), start + SECOND, now), "only just trusted");
        assert!(prefers(&sight, Some(&served), start + SECOND * 2, now), "trusted for a second");
        assert!(prefers(&sight, Some(&served), start + SECOND, now + HOUR * 2), "the served one has ended");
        sight.see(vec![hook("a", &[&new])], start + SECOND);
        assert!(prefers(&sight, Some(&served), start + SECOND, now), "the served one is trusted no more");
    }
}
