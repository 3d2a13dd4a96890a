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

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use nodestub_dataplane::desired::Error as WishError;
use nodestub_dataplane::watch::Watch;
use nodestub_dataplane::{Applied, Desired, Error, FailOpen, Parts, Removed};

use crate::args::Serve;
use crate::metrics::Counter;

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

    /// Puts right what somebody changes: at once where the kernel tells us, and at a look every `interval` in any case;
    /// not while this process is not `in_charge`, for a newer one may want other rules. Ends never.
    pub async fn keep_in_order(mut self, interval: Duration, in_charge: impl Fn() -> bool) {
        let Some(wish) = self.wish.clone() else { return };
        let mut watch = Watch::open().inspect_err(|error| {
            tracing::warn!(%error, "changes to the address and the rules are noticed by looking only");
        });
        loop {
            let Some(applied) = &mut self.applied else {
                tokio::time::sleep(interval).await;
                if in_charge() {
                    self.applied = again(&wish, &self.errors).await;
                }
                continue;
            };
            let found = match &mut watch {
                Ok(open) => tokio::select! {
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
                Err(_) => {
                    tokio::time::sleep(interval).await;
                    applied.verify().await
                }
            };
            let Err(found) = found else { continue };
            if !in_charge() {
                continue;
            }
            count(&self.errors, &found, true);
            match applied.repair().await {
                Ok(()) => tracing::warn!(%found, "the node was changed by somebody, and is in order again"),
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

/// Takes away everything that we ever made on this node. Refused while something listens on one of the addresses, unless
/// `force`: pods would lose their resolver.
///
/// # Errors
/// Somebody listens, or the kernel refuses.
pub async fn clean_up(addresses: Vec<IpAddr>, port: u16, force: bool) -> Result<Removed, CleanUpError> {
    if !force && let Some(address) = addresses.iter().find(|address| somebody_listens(**address, port)) {
        return Err(CleanUpError::InUse(*address));
    }
    nodestub_dataplane::cleanup().await.map_err(CleanUpError::Kernel)
}

/// Why nothing, or not everything, was taken away.
#[derive(Debug)]
pub enum CleanUpError {
    /// Something listens on this address.
    InUse(IpAddr),
    /// The kernel refused.
    Kernel(Error),
}

impl std::fmt::Display for CleanUpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse(address) => write!(
                f,
                "something listens on {address}, so pods may be using it: stop the resolver first, or give --force"
            ),
            Self::Kernel(cause) => write!(f, "{cause}"),
        }
    }
}

impl std::error::Error for CleanUpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::InUse(_) => None,
            Self::Kernel(cause) => Some(cause),
        }
    }
}

fn somebody_listens(address: IpAddr, port: u16) -> bool {
    let taken =
        |bound: std::io::Result<()>| bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
    taken(UdpSocket::bind((address, port)).map(drop)) || taken(TcpListener::bind((address, port)).map(drop))
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
