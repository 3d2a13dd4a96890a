//! The node's state in the daemon's life: address and rules are the first act, and they stay.
//!
//! ```text
//!   flags, environment ─► wish (pure) ─► set_up, before the Corefile is read ─► kept in order while we run
//!                                                                              └─ and left in place at the end
//! ```
//!
//! A daemon that ends, by SIGTERM, a crash or a Corefile that does not read, leaves both where they are: the kernel's
//! fail-open answers then, and where that is off, queries are refused at once and a pod's second nameserver is asked.
//! Only `nodestub-resolver cleanup` takes them away. What cannot be set up is said and counted, and the start goes on:
//! where the address is there already, DNS is answered all the same.

use std::sync::Arc;
use std::time::Duration;

use nodestub_dataplane::desired::Error as WishError;
use nodestub_dataplane::watch::Watch;
use nodestub_dataplane::{Applied, Desired, Error, FailOpen, Parts};
use tokio::sync::watch;

use crate::args::Serve;
use crate::metrics::Counter;
use crate::proof::Proof;
use crate::surroundings::{Known, addresses};

/// Pause after a repair that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What is counted while the node is set up and kept in order; CoreDNS's `errortype` labels.
#[derive(Debug, Default)]
pub struct SetupErrors {
    /// The device or an address could not be put up.
    pub interface_add: Counter,
    /// It was not as it should be when looked at again.
    pub interface_check: Counter,
    /// The rules could not be loaded, or were not as they should be. Rules of nftables, whatever the label says.
    pub iptables: Counter,
}

/// What this node should look like.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Addresses and rules.
    pub desired: Desired,
    /// What of it is ours to do.
    pub parts: Parts,
}

/// What flags and environment ask for; `None`: nothing. `variable` looks up an environment variable.
///
/// # Errors
/// It cannot be had on any node.
pub fn wish(serve: &Serve, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Wish>, WishError> {
    let placeholders = &serve.placeholders;
    let local = placeholders.local_addresses();
    let parts = Parts { rules: serve.setup_rules, addresses: serve.setup_interface };
    if (local.is_empty() && serve.intercept.is_empty()) || !(parts.rules || parts.addresses) {
        return Ok(None);
    }
    // NodeLocal's way of naming the Service's address among the local ones (`-localip 169.254.20.10,10.96.0.10`).
    let kube_dns = variable("KUBE_DNS_SERVICE_HOST").map(|text| addresses(&text)).unwrap_or_default();
    let mut services = serve.intercept.clone();
    services.extend(local.iter().filter(|address| kube_dns.contains(address)));

    let health_port = Some(serve.health_port);
    let mut desired = Desired::new(&local, &serve.interface_name, placeholders.port, health_port)?;
    if !services.is_empty() {
        desired = desired.intercept(&services)?;
    }
    let mut targets = serve.fallback.clone();
    if targets.is_empty() {
        targets.extend(placeholders.options(&variable).cluster_dns);
        targets.extend(kube_dns);
    }
    for address in local.iter().filter(|address| !services.contains(address)) {
        let target = targets.iter().find(|target| target.is_ipv4() == address.is_ipv4());
        if let Some(target) = target {
            desired = desired.with_fallback(*address, *target)?;
        }
    }
    if !serve.fail_open {
        desired = desired.without_fail_open();
    }
    Ok(Some(Wish { desired, parts }))
}

/// The node as it was set up, and what keeps it so.
#[derive(Debug)]
pub struct Node {
    wish: Option<Wish>,
    applied: Option<Applied>,
    errors: Arc<SetupErrors>,
    proof: Arc<Proof>,
}

impl Node {
    /// Puts up the address and loads the rules, and reads both back. Failures are said and counted.
    pub async fn set_up(wish: Option<Wish>, known: &Known) -> Self {
        let mut node = Self { wish, applied: None, errors: Arc::default(), proof: Arc::default() };
        let Some(wish) = &node.wish else { return node };
        match apply(wish).await {
            Ok(applied) => {
                tracing::info!(device = applied.device(), rules = applied.rule_count(), "the node is set up");
                say_fail_open(wish);
                node.applied = Some(applied);
            }
            Err(error) => {
                count(&node.errors, &error, false);
                tracing::error!(%error, "the node is not set up as it should be; going on with what is there");
            }
        }
        node.prove(known);
        node
    }

    /// What was counted.
    pub fn errors(&self) -> Arc<SetupErrors> {
        Arc::clone(&self.errors)
    }

    /// Whether what becomes of queries while nobody listens was seen to work, address by address.
    pub fn proof(&self) -> Arc<Proof> {
        Arc::clone(&self.proof)
    }

    fn prove(&self, known: &Known) {
        let wish = self.wish.as_ref().filter(|wish| wish.parts.rules);
        let in_place = self.applied.is_some();
        self.proof.set(wish.map(|wish| wish.desired.clone()), known.domain(), in_place);
    }

    /// Goes over to what follows from what is known now. A wish that cannot be met leaves the former one in force.
    async fn follow(&mut self, known: &Known, serve: &Serve) {
        let wish = match wish(serve, |name| known.variable(name)) {
            Ok(wish) => wish,
            Err(error) => {
                tracing::error!(%error, "the address and the rules stay as they are");
                return;
            }
        };
        let same = match (&wish, &self.wish) {
            (Some(wish), Some(before)) => wish.desired == before.desired,
            (None, None) => true,
            _ => false,
        };
        if !same && let Some(wish) = &wish {
            say_fail_open(wish);
            match apply(wish).await {
                Ok(applied) => self.applied = Some(applied),
                Err(error) => {
                    count(&self.errors, &error, false);
                    tracing::error!(%error, "the rules do not follow what changed in the cluster");
                    self.applied = None;
                }
            }
        }
        self.wish = wish;
        self.prove(known);
    }

    /// Puts right what somebody changes: at once where the kernel tells us, and at a look every `interval` in any case;
    /// and goes over to what follows from what becomes `known` (set up is what follows from `followed`). Not while this process is not `in_charge`, for a newer one
    /// may want other rules. Ends never.
    pub async fn keep_in_order(
        mut self,
        serve: Serve,
        mut known: watch::Receiver<Known>,
        mut followed: Known,
        in_charge: impl Fn() -> bool,
    ) {
        if self.wish.is_none() {
            return;
        }
        let interval = serve.sync_interval;
        let mut watch = Watch::open().inspect_err(|error| {
            tracing::warn!(%error, "changes to the address and the rules are noticed by looking only");
        });
        loop {
            if in_charge() {
                let now = known.borrow().clone();
                if now != followed {
                    self.follow(&now, &serve).await;
                    followed = now;
                }
            }
            let Some(applied) = &mut self.applied else {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = changed(&mut known) => {}
                }
                if in_charge()
                    && let Some(wish) = &self.wish
                {
                    self.applied = again(wish, &self.errors).await;
                    self.prove(&followed);
                }
                continue;
            };
            let found = match &mut watch {
                Ok(open) => tokio::select! {
                    () = changed(&mut known) => continue,
                    heard = open.broken(applied) => match heard {
                        Ok(found) => Err(found),
                        Err(error) => {
                            tracing::warn!(%error, "changes are noticed by looking only from now on");
                            watch = Err(error);
                            continue;
                        }
                    },
                    () = tokio::time::sleep(interval) => applied.verify().await,
                },
                Err(_) => tokio::select! {
                    () = changed(&mut known) => continue,
                    () = tokio::time::sleep(interval) => applied.verify().await,
                },
            };
            let Err(found) = found else { continue };
            if !in_charge() {
                continue;
            }
            count(&self.errors, &found, true);
            match applied.repair().await {
                Ok(()) => {
                    tracing::warn!(%found, "the node was changed by somebody, and is in order again");
                    self.proof.try_soon();
                }
                Err(error) => {
                    count(&self.errors, &error, false);
                    tracing::error!(%found, %error, "the node was changed by somebody, and cannot be put in order");
                    // Whoever takes it away as fast as we put it there must not keep a CPU busy.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Waits until something else is known; for ever where nobody follows it any more.
async fn changed(known: &mut watch::Receiver<Known>) {
    if known.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Tries once more what could not be set up at the start.
async fn again(wish: &Wish, errors: &SetupErrors) -> Option<Applied> {
    match apply(wish).await {
        Ok(applied) => {
            tracing::info!("the node is set up at last");
            Some(applied)
        }
        Err(error) => {
            count(errors, &error, false);
            tracing::error!(%error, "the node still cannot be set up");
            None
        }
    }
}

async fn apply(wish: &Wish) -> Result<Applied, Error> {
    let applied = nodestub_dataplane::apply(&wish.desired, wish.parts).await?;
    applied.verify().await?;
    Ok(applied)
}

fn count(errors: &SetupErrors, error: &Error, checked: bool) {
    match error {
        Error::Rules(_) => errors.iptables.add(1),
        Error::Link(_) if checked => errors.interface_check.add(1),
        Error::Link(_) => errors.interface_add.add(1),
    }
}

fn say_fail_open(wish: &Wish) {
    for (address, fail_open) in wish.desired.fail_open().filter(|_| wish.parts.rules) {
        match fail_open {
            FailOpen::Off(reason) => tracing::warn!(
                %address,
                %reason,
                "kernel fail-open is off: while this process is down, queries are refused and pods need a second \
                 nameserver; give a target with --fallback"
            ),
            to => tracing::info!(%address, %to, "kernel fail-open: where queries go while nobody listens"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, with_two_dashes};
    use clap::Parser;

    const LOCAL: &str = "169.254.20.10";

    /// What becomes of queries while nobody listens, as text.
    fn fail_open(line: &str, variables: &[(&str, &str)]) -> Vec<String> {
        let words = line.split_whitespace().map(std::ffi::OsString::from);
        let arguments = Arguments::try_parse_from(with_two_dashes(words)).unwrap();
        let variable = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        };
        let wish = wish(&arguments.serve, variable).unwrap().unwrap();
        wish.desired.fail_open().map(|(address, to)| format!("{address} {to}")).collect()
    }

    #[test]
    fn nodelocals_flags_say_which_address_is_kube_proxys_and_where_the_other_falls_back() {
        let found = fail_open(
            "x -localip 169.254.20.10,10.96.0.10 -upstreamsvc kube-dns-upstream",
            &[("KUBE_DNS_SERVICE_HOST", "10.96.0.10"), ("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.7.7")],
        );
        assert_eq!(found, ["169.254.20.10 to 10.96.7.7", "10.96.0.10 to kube-proxy"]);
    }

    #[test]
    fn a_fallback_that_is_given_beats_what_the_environment_says() {
        let environment = [("KUBE_DNS_SERVICE_HOST", "10.96.0.10")];
        assert_eq!(fail_open("x -localip 169.254.20.10", &environment), [format!("{LOCAL} to 10.96.0.10")]);
        let line = "x -localip 169.254.20.10 --fallback 192.0.2.53,fd00::53";
        assert_eq!(fail_open(line, &environment), [format!("{LOCAL} to 192.0.2.53")]);
    }

    #[test]
    fn fail_open_is_off_where_nobody_says_where_to_or_the_flag_says_so() {
        let off = |line| fail_open(line, &[]).iter().all(|text| text.contains(" off: "));
        assert!(off("x -localip 169.254.20.10"));
        assert!(off("x -localip 169.254.20.10 --fallback fd00::53"));
        assert!(off("x -localip 169.254.20.10 --fallback 192.0.2.53 --fail-open=false"));
    }

    #[test]
    fn services_to_intercept_are_named_by_a_flag_as_well() {
        let found = fail_open("x -localip 169.254.20.10 --fallback 192.0.2.53 --intercept 10.96.0.10", &[]);
        assert_eq!(found, ["169.254.20.10 to 192.0.2.53", "10.96.0.10 to kube-proxy"]);
    }
}
