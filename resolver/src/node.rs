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

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nodestub_dataplane::desired::Error as WishError;
use nodestub_dataplane::{Applied, Desired, Error, FailOpen, Parts};

use crate::args::Serve;
use crate::metrics::Counter;

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
    let kube_dns: Option<IpAddr> = variable("KUBE_DNS_SERVICE_HOST").and_then(|text| text.parse().ok());
    let mut services = serve.intercept.clone();
    services.extend(local.iter().filter(|address| Some(**address) == kube_dns));

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
}

impl Node {
    /// Puts up the address and loads the rules, and reads both back. Failures are said and counted.
    pub async fn set_up(wish: Option<Wish>) -> Self {
        let mut node = Self { wish, applied: None, errors: Arc::default() };
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
        node
    }

    /// What was counted.
    pub fn errors(&self) -> Arc<SetupErrors> {
        Arc::clone(&self.errors)
    }

    /// What becomes of queries while nobody listens, address by address.
    pub fn fail_open(&self) -> Vec<(IpAddr, FailOpen)> {
        let wish = self.wish.as_ref().filter(|wish| wish.parts.rules);
        wish.map(|wish| wish.desired.fail_open().collect()).unwrap_or_default()
    }

    /// Looks at the node every `interval`, and puts right what somebody has changed. Ends never.
    pub async fn keep_in_order(mut self, interval: Duration) {
        let Some(wish) = &self.wish else { return };
        loop {
            tokio::time::sleep(interval).await;
            let found = match &self.applied {
                Some(applied) => match applied.verify().await {
                    Ok(()) => continue,
                    Err(found) => {
                        count(&self.errors, &found, true);
                        found.to_string()
                    }
                },
                None => "it could not be set up before".to_owned(),
            };
            match apply(wish).await {
                Ok(applied) => {
                    self.applied = Some(applied);
                    tracing::warn!(%found, "the node is in order again");
                }
                Err(error) => {
                    count(&self.errors, &error, false);
                    tracing::error!(%found, %error, "the node cannot be put in order");
                }
            }
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
