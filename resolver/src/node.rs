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

use nodestub_dataplane::watch::Watch;
use nodestub_dataplane::{Applied, Desired, Error, FailOpen, Parts, desired, link, nftables};
use tokio::sync::watch;

use crate::args::{Mode, Serve};
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
    /// The ConfigMap of kube-dns could not be read, or makes no sense.
    pub configmap: Counter,
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
    if serve.mode == Some(Mode::Redirect) {
        return redirected(serve).map(|()| None);
    }
    let parts =
        Parts { rules: serve.setup_rules.unwrap_or(true), addresses: serve.setup_interface.unwrap_or(true) };
    if (local.is_empty() && serve.intercept.is_empty()) || !(parts.rules || parts.addresses) {
        return Ok(None);
    }
    // NodeLocal's way of naming the Service's address among the local ones (`-localip 169.254.20.10,10.96.0.10`).
    let kube_dns = variable("KUBE_DNS_SERVICE_HOST").map(|text| addresses(&text)).unwrap_or_default();
    let mut services = serve.intercept.clone();
    services.extend(local.iter().filter(|address| kube_dns.contains(address)));

    match serve.mode {
        Some(Mode::Local) if !services.is_empty() => return Err(WishError::LocalWithService(services)),
        Some(Mode::Intercept) if services.is_empty() => return Err(WishError::NothingToIntercept),
        _ => {}
    }

    let health_port = Some(serve.health_port);
    let mut desired = Desired::new(&local, &serve.interface_name, placeholders.port, health_port)?;
    if !services.is_empty() {
        desired = desired.intercept(&services)?;
    }
    let mut targets = serve.fallback.clone();
    if targets.is_empty() {
        // Not the Service of -upstreamsvc first: NodeLocal's is part of its manifest, and goes when that is deleted, while
        // the rules stay for the pods that still ask.
        targets.extend(kube_dns);
        targets.extend(placeholders.options(&variable).cluster_dns);
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

/// In mode redirect nothing of the node is touched: flags that ask for it contradict.
fn redirected(serve: &Serve) -> Result<(), WishError> {
    let asked = [
        (serve.setup_interface == Some(true), "-setupinterface=true"),
        (serve.setup_rules == Some(true), "-setupiptables=true"),
        (!serve.intercept.is_empty(), "--intercept"),
        (!serve.fallback.is_empty(), "--fallback"),
    ];
    match asked.into_iter().find(|(is_asked, _)| *is_asked) {
        Some((_, flag)) => Err(WishError::RedirectWith(flag)),
        None => Ok(()),
    }
}

/// Why what the flags ask for cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub enum WishError {
    /// On no node.
    Impossible(desired::Error),
    /// Mode redirect and a flag that has no meaning in it.
    RedirectWith(&'static str),
    /// Mode local, and addresses of Services.
    LocalWithService(Vec<IpAddr>),
    /// Mode intercept without any address of a Service.
    NothingToIntercept,
}

impl From<desired::Error> for WishError {
    fn from(cause: desired::Error) -> Self {
        Self::Impossible(cause)
    }
}

impl std::fmt::Display for WishError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Impossible(cause) => write!(f, "{cause}"),
            Self::RedirectWith(flag) => write!(
                f,
                "--mode redirect touches nothing of the node, and {flag} asks for it: leave one of them out"
            ),
            Self::LocalWithService(services) => {
                let services: Vec<String> = services.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "--mode local answers on no address of a Service, and {} is one: take it out of -localip and \
                     --intercept, or use --mode intercept",
                    services.join(", ")
                )
            }
            Self::NothingToIntercept => f.write_str(
                "--mode intercept: no address of a Service is given. Name it with --intercept, or among -localip where \
                 it is KUBE_DNS_SERVICE_HOST; that variable is missing where there is no Service kube-dns in the \
                 pod's namespace",
            ),
        }
    }
}

impl std::error::Error for WishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Impossible(cause) => Some(cause),
            _ => None,
        }
    }
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
        let rules_are_wished = node.wish.as_ref().is_some_and(|wish| wish.parts.rules);
        if !rules_are_wished && matches!(nftables::is_there().await, Ok(true)) {
            tracing::warn!(
                "these flags ask for no rules, but table inet {} of an earlier start is loaded and in force: pods may \
                 live by it, so it stays. `nodestub-resolver cleanup` takes it away, with address and device",
                desired::TABLE
            );
        }
        let Some(wish) = &node.wish else { return node };
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

    /// What the rules are for, where they are our part: what was set up, or while that failed, what is wished.
    pub fn rules(&self) -> Option<&Desired> {
        let wish = self.wish.as_ref().filter(|wish| wish.parts.rules)?;
        match &self.applied {
            Some(applied) if applied.ruleset().is_some() => Some(applied.desired()),
            _ => Some(&wish.desired),
        }
    }

    fn prove(&self, known: &Known) {
        let in_place = self.applied.as_ref().is_some_and(|applied| applied.ruleset().is_some());
        self.proof.set(self.rules().cloned(), known.domain(), in_place);
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
        assert_eq!(found, ["169.254.20.10 to 10.96.0.10", "10.96.0.10 to kube-proxy"]);
    }

    #[test]
    fn falls_back_to_the_service_of_upstreamsvc_where_none_is_called_kube_dns() {
        let found = fail_open(
            "x -localip 169.254.20.10 -upstreamsvc coredns",
            &[("COREDNS_SERVICE_HOST", "10.96.7.7")],
        );
        assert_eq!(found, ["169.254.20.10 to 10.96.7.7"]);
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

    /// What is wrong with the flags; empty: nothing.
    fn contradiction(line: &str) -> String {
        let words = line.split_whitespace().map(std::ffi::OsString::from);
        let arguments = Arguments::try_parse_from(with_two_dashes(words)).unwrap();
        let variable = |name: &str| (name == "KUBE_DNS_SERVICE_HOST").then(|| "10.96.0.10".to_owned());
        wish(&arguments.serve, variable).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn modes_refuse_flags_that_contradict_them_and_name_the_flag() {
        let both = "-localip 169.254.20.10,10.96.0.10";
        for line in [
            "--mode local -localip 169.254.20.10",
            "--mode redirect -localip 169.254.20.10 -setupinterface=false",
        ] {
            assert_eq!(contradiction(&format!("x {line}")), "");
        }
        assert_eq!(contradiction(&format!("x --mode intercept {both}")), "");
        assert!(contradiction(&format!("x --mode local {both}")).contains("10.96.0.10"));
        assert!(contradiction("x --mode intercept -localip 169.254.20.10").contains("--intercept"));
        for flag in
            ["-setupinterface=true", "-setupiptables=true", "--intercept 10.96.0.10", "--fallback 10.96.0.10"]
        {
            let found = contradiction(&format!("x --mode redirect {both} {flag}"));
            assert!(found.contains(flag.split(' ').next().unwrap()), "{flag}: {found}");
        }
    }
}
