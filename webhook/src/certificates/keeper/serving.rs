//! What is served: the Secret read, what is good of it offered, and exchanged for what is served when the API server
//! trusts it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::runtime::events::EventType;
use nodestub_certs::bundle::Root;
use nodestub_certs::kept::{BUNDLE, CERTIFICATE, KEY, Kept};
use nodestub_certs::resolver::Outlook;
use nodestub_certs::{Material, Pair};

use super::Work;
use crate::certificates::Mode;
use crate::certificates::store::contents;
use crate::facts::cluster::in_one_line;

impl Work {
    /// Reads the Secret anew: it has changed, or the time has, or the names that are asked for.
    pub(super) fn read(&mut self) {
        let (now, contents) = (self.now(), contents(self.secret.object()));
        let mut problems: Vec<String> = Vec::new();
        if self.settings.mode == Mode::Own {
            let (kept, found) = Kept::read(&contents, &self.wanted(), now);
            problems.extend(found.iter().map(|problem| in_one_line(problem)));
            if let Some(leaf) = &kept.leaf {
                self.offer(&leaf.pair);
            }
            self.kept = kept;
        } else if self.secret.object().is_none() {
            problems.push(format!("there is no Secret {}", self.settings.secret));
        } else {
            let part = |name: &str| contents.get(name).cloned().unwrap_or_default();
            let material =
                Material { certificate: part(CERTIFICATE), key: part(KEY), authority: part(BUNDLE) };
            match Pair::parse(&material, now) {
                Ok(pair) => match self.lacking(&pair) {
                    None => self.offer(&Arc::new(pair)),
                    Some(host) => {
                        problems.push(format!("tls.crt is not good for {host}, which the API server calls"));
                    }
                },
                Err(error) => problems.push(in_one_line(&error)),
            }
        }
        let problems = problems.join("; ");
        if !problems.is_empty() {
            self.metrics.certificates_loaded(false);
        }
        if self.said.problems != problems {
            if !problems.is_empty() {
                let who = match self.settings.mode {
                    Mode::Own => "it is mended by whoever leads",
                    Mode::CertManager => "see cert-manager's Certificate and its events",
                    Mode::Provided => "put a good one there",
                };
                let secret = &self.settings.secret;
                tracing::error!(
                    secret,
                    problems,
                    "the Secret is not as it should be; the last good certificate is kept; {who}"
                );
                self.event(EventType::Warning, "CertificateRefused", "Load", &problems);
            }
            self.said.problems = problems;
        }
    }

    /// What the API server asks for that this pair does not have.
    fn lacking(&self, pair: &Pair) -> Option<String> {
        let own = format!("{}.{}.svc", self.settings.names.service, self.settings.names.namespace);
        let hosts: Vec<String> = self.sight.hooks().iter().map(|hook| hook.host.clone()).collect();
        let hosts = if hosts.is_empty() { vec![own] } else { hosts };
        hosts.into_iter().find(|host| !pair.is_good_for(host))
    }

    fn offer(&mut self, pair: &Arc<Pair>) {
        // The same one again would lose what is known of it.
        let same = self.offered.as_ref().is_some_and(|known| known.chain() == pair.chain());
        if !same {
            self.offered = Some(Arc::clone(pair));
        }
    }

    pub(super) fn names(&self) -> nodestub_certs::ServingNames {
        let mut names = self.settings.names.clone();
        if names.cluster_domain.is_none() {
            names.cluster_domain = self.facts.load().facts.cluster_domain.as_ref().map(ToString::to_string);
        }
        names
    }

    pub(super) fn wanted(&self) -> Vec<String> {
        let names = self.names();
        // Checked when the flags were read; a domain of the cluster that is no name is left out.
        let mut wanted = names.dns_names().unwrap_or_default();
        wanted.extend(names.addresses.iter().map(ToString::to_string));
        wanted
    }

    /// Serves the offered pair, if that is no worse than the one that is served, and notes what is known of it.
    pub(super) fn serve(&mut self) {
        let (at, now) = (Instant::now(), self.now());
        if self.offered.is_none() && self.secret.object().is_some() {
            // One that was not valid yet becomes so by time alone.
            self.read();
        }
        let served = self.resolver.current();
        if let Some(offered) = &self.offered
            && !served.as_ref().is_some_and(|served| Arc::ptr_eq(served, offered))
        {
            match self.sight.prefer(offered, served.as_deref(), self.settings.plan.grace, at, now) {
                Ok(()) => {
                    self.resolver.swap(Arc::clone(offered));
                    self.metrics.certificates_loaded(true);
                    let left = offered.leaf().seconds_left(now).round();
                    tracing::info!(seconds_left = left, "serving a new certificate");
                    self.said.kept_back = None;
                }
                Err(distrust) => {
                    let why = in_one_line(&distrust);
                    if self.said.kept_back.as_ref() != Some(&why) {
                        tracing::info!(why, "a new certificate waits until the API server trusts it");
                        self.said.kept_back = Some(why);
                    }
                }
            }
        }
        self.note(at, now);
    }

    fn note(&mut self, at: Instant, now: SystemTime) {
        let verdict = self.resolver.current().filter(|_| self.registered.object().is_some()).map(|served| {
            let verdict = self.sight.verify(&served, Duration::ZERO, at, now);
            verdict.map_err(|distrust| in_one_line(&distrust))
        });
        if self.said.verdict != verdict {
            match &verdict {
                Some(Err(why)) => {
                    tracing::error!(why, "the API server would refuse the certificate that is served");
                }
                Some(Ok(())) => tracing::info!("the API server trusts the certificate that is served"),
                None => {}
            }
            self.said.verdict.clone_from(&verdict);
        }
        let authority = |root: &Root| (root.name.clone(), root.validity);
        let authorities = self.kept.roots().map(authority).collect();
        self.resolver.note(Outlook { verdict, authorities });
    }
}
