//! The node's state in the daemon's life: address and rules are the first act, and they stay.
//!
//! ```text
//!   wish (see `wish`) ─► set_up, before the Corefile is read ─► kept in order while we run
//!                                                                    └─ and left in place at the end
//! ```
//!
//! A daemon that ends, by SIGTERM, a crash or a Corefile that does not read, leaves both where they are: the kernel's
//! fail-open answers then, and where that is off, queries are refused at once and a pod's second nameserver is asked.
//! Only `nodestub-resolver cleanup` takes them away. What cannot be set up is said and counted, and the start goes on:
//! where the address is there already, DNS is answered all the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nodestub_dataplane::watch::Watch;
use nodestub_dataplane::{Applied, Desired, Error, FailOpen, Parts, desired, link, nftables};
use tokio::sync::watch;

use crate::args::Serve;
use crate::metrics::Counter;
use crate::proof::Proof;
use crate::surroundings::Known;
use crate::wish::{Wish, wish};

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
    /// The ConfigMap of kube-dns could not be read, or makes no sense.
    pub configmap: Counter,
}

/// The node as it was set up, and what keeps it so.
#[derive(Debug)]
pub struct Node {
    wish: Option<Wish>,
    applied: Option<Applied>,
    errors: Arc<SetupErrors>,
    proof: Arc<Proof>,
    /// What [`Node::rules`] gives, for whoever is to follow it.
    rules: watch::Sender<Option<Desired>>,
}

impl Node {
    /// A node that nothing was done to yet.
    pub fn new(wish: Option<Wish>) -> Self {
        let node = Self {
            wish,
            applied: None,
            errors: Arc::default(),
            proof: Arc::default(),
            rules: watch::Sender::new(None),
        };
        node.rules.send_replace(node.rules().cloned());
        node
    }

    /// Puts up the address and loads the rules, and reads both back. Failures are said and counted.
    #[must_use]
    pub async fn set_up(mut self, known: &Known) -> Self {
        let node = &mut self;
        let rules_are_wished = node.wish.as_ref().is_some_and(|wish| wish.parts.rules);
        if !rules_are_wished && matches!(nftables::is_there().await, Ok(true)) {
            tracing::warn!(
                "these flags ask for no rules, but table inet {} of an earlier start is loaded and in force: pods may \
                 live by it, so it stays. `nodestub-resolver cleanup` takes it away, with address and device",
                desired::TABLE
            );
        }
        let Some(wish) = &node.wish else { return self };
        match apply(wish, &node.errors).await {
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
        self
    }

    /// What was counted.
    pub fn errors(&self) -> Arc<SetupErrors> {
        Arc::clone(&self.errors)
    }

    /// Whether what becomes of queries while nobody listens was seen to work, address by address.
    pub fn proof(&self) -> Arc<Proof> {
        Arc::clone(&self.proof)
    }

    /// What the rules are for now, and from now on.
    pub fn follow_rules(&self) -> watch::Receiver<Option<Desired>> {
        self.rules.subscribe()
    }

    /// What the rules are for, where they are our part: what was set up, or while that failed, what is wished.
    fn rules(&self) -> Option<&Desired> {
        let wish = self.wish.as_ref().filter(|wish| wish.parts.rules)?;
        match &self.applied {
            Some(applied) if applied.ruleset().is_some() => Some(applied.desired()),
            _ => Some(&wish.desired),
        }
    }

    fn prove(&self, known: &Known) {
        let in_place = self.applied.as_ref().is_some_and(|applied| applied.ruleset().is_some());
        self.proof.set(self.rules().cloned(), known.domain(), in_place);
        let rules = self.rules().cloned();
        self.rules.send_if_modified(|before| {
            let differs = *before != rules;
            *before = rules;
            differs
        });
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
            self.applied = again(wish, &self.errors).await;
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
        // Flags alone say whether there is one.
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
            let Some(wish) = &self.wish else { return };
            let applied = match &mut self.applied {
                // Without rules that are wished, it is set up in part.
                Some(applied) if applied.ruleset().is_some() || !wish.parts.rules => applied,
                _ => {
                    tokio::select! {
                        () = tokio::time::sleep(interval) => {}
                        () = changed(&mut known) => {}
                    }
                    if in_charge() {
                        self.applied = again(wish, &self.errors).await;
                        self.prove(&followed);
                    }
                    continue;
                }
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
            if is_taken_service(&found, applied.desired()) {
                self.applied = again(wish, &self.errors).await;
                self.prove(&followed);
                continue;
            }
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
    match apply(wish, errors).await {
        Ok(applied) => {
            tracing::info!(device = applied.device(), rules = applied.rule_count(), "the node is set up");
            Some(applied)
        }
        Err(error) => {
            count(errors, &error, false);
            tracing::error!(%error, "the node still cannot be set up");
            None
        }
    }
}

/// An address that is somebody else's is left to them, and said; the others are set up. Where the kernel refuses the
/// rules, the address is put up all the same. Only where nothing is left it is an error.
async fn apply(wish: &Wish, errors: &SetupErrors) -> Result<Applied, Error> {
    let (mut desired, mut parts) = (wish.desired.clone(), wish.parts);
    loop {
        let applied = async {
            let applied = nodestub_dataplane::apply(&desired, parts).await?;
            applied.verify().await.map(|()| applied)
        };
        let error = match applied.await {
            Err(error) => error,
            applied => return applied,
        };
        if matches!(error, Error::Rules(_)) && parts == Parts::ALL {
            count(errors, &error, false);
            tracing::error!(
                %error,
                "no rules: DNS to the address is tracked, and refused while nobody listens; going on with the address"
            );
            parts.rules = false;
            continue;
        }
        let rest = taken(&error).and_then(|address| desired.without(address));
        let Some(rest) = rest else { return Err(error) };
        count(errors, &error, false);
        tracing::error!(%error, "this address is left to whoever has it; going on with the others");
        desired = rest;
    }
}

/// What is wished, less the addresses that other devices carry, and those with their devices.
pub async fn without_taken(wish: &Wish) -> (Desired, Vec<(IpAddr, String)>) {
    let mut left = Vec::new();
    let mut desired = wish.desired.clone();
    let found =
        if wish.parts.addresses { link::taken(&desired).await.unwrap_or_default() } else { Vec::new() };
    for (address, device) in found {
        // Where nothing would be left, the daemon says so and sets up nothing; the rules are what was asked for.
        if let Some(rest) = desired.without(address) {
            desired = rest;
            left.push((address, device));
        }
    }
    (desired, left)
}

/// The address that another device carries, where that is what is wrong.
fn taken(error: &Error) -> Option<IpAddr> {
    match error {
        Error::Link(link::Error::Taken { address, .. }) => Some(*address),
        _ => None,
    }
}

/// Whether kube-proxy has begun to carry the address of a Service itself (IPVS): then rules of ours for it would only
/// get in its way. A local address that another device carries as well still leads to us, and stays.
fn is_taken_service(error: &Error, desired: &Desired) -> bool {
    taken(error).is_some_and(|address| desired.is_service(address))
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
