//! What flags and surroundings ask of this node: addresses, what is intercepted, and where queries go while nobody listens.
//!
//! ```text
//!   flags, variables (of the environment, or what stands in for them) ─► wish (pure) ─► Wish: Desired, Parts
//! ```
//!
//! Nothing is touched here. `node` sets it up and keeps it so; a change of the surroundings gives a new wish.

use std::net::IpAddr;

use nodestub_dataplane::{Desired, Parts, desired};

use crate::args::{Mode, Serve};
use crate::surroundings::addresses;

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
