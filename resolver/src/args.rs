//! The command line.
//!
//! ```text
//!   nodestub-resolver [-conf FILE] [-localip IP,...] ...     serves
//!   nodestub-resolver check FILE                             says what is wrong with a Corefile, and serves nothing
//!   nodestub-resolver cleanup [--force]                      takes away what was ever set up on this node
//!   nodestub-resolver rules [-localip IP,...] ...            prints the rules that these flags ask for
//!   nodestub-resolver probe startup|live|ready               asks the one that runs in this container
//! ```
//!
//! Flags of NodeLocal DNSCache's `node-cache` are accepted verbatim, with one dash or two, and `=false` behind a
//! switch; beside them stand our own names. A flag that is not supported yet is an error, as anything unknown is.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nodestub_corefile::Options;

use crate::control::Question;

/// DNS for the pods of this node: caches, forwards, and keeps DNS out of connection tracking.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags for serving.
    #[command(flatten)]
    pub serve: Serve,
}

/// What can be done besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reads a Corefile and says what is wrong with it; exit status 1 if anything is.
    Check {
        /// The file.
        file: PathBuf,
        /// What the Corefile does not say itself.
        #[command(flatten)]
        placeholders: Placeholders,
    },
    /// Takes away everything that was ever set up on this node: addresses, device, rules. Pods that still have the
    /// address in their resolv.conf then have their second nameserver only.
    Cleanup {
        /// Addresses that must not be listened on.
        #[arg(
            long = "localip",
            visible_alias = "local-address",
            value_name = "IP,...",
            value_delimiter = ',',
            default_value = "169.254.20.10",
            env = "NODESTUB_LOCAL_ADDRESS"
        )]
        local_addresses: Vec<IpAddr>,
        /// The port of DNS.
        #[arg(long = "dns.port", visible_alias = "port", value_name = "PORT", default_value_t = 53)]
        port: u16,
        /// Whoever listens.
        #[arg(long)]
        force: bool,
    },
    /// Prints the rules that these flags ask for, as text for `nft -f`; loads nothing.
    Rules(Box<Serve>),
    /// Asks the resolver that runs in this container how it is; exit status 0 for yes. For probes of a kubelet.
    Probe {
        /// What to ask.
        question: Question,
        /// How long it may take, in seconds or with a unit.
        #[arg(long = "timeout", value_name = "DURATION", default_value = "2s", value_parser = duration)]
        limit: Duration,
        /// Which one, where several run.
        #[arg(long)]
        pid: Option<u32>,
    },
}

/// Flags for serving.
#[derive(Debug, Args)]
pub struct Serve {
    /// The Corefile.
    #[arg(long = "conf", visible_aliases = ["config", "corefile"], value_name = "FILE", default_value = "Corefile")]
    pub conf: PathBuf,
    /// Read in place of `-conf` where it is there: node-cache's template, whose placeholders are filled in memory.
    #[arg(long = "basecorefile", value_name = "FILE", default_value = "/etc/coredns/Corefile.base")]
    pub base_corefile: PathBuf,
    /// Look at the Corefile every 10 s even where it has no `reload`; node-cache signals itself for that.
    #[arg(
        long = "reloadwithsignal",
        value_name = "BOOL",
        default_value_t = false,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub reload_with_signal: bool,
    /// Write the process id to this file once queries are answered.
    #[arg(long = "pidfile", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Serve `/metrics` here as well. (node-cache does so on 0.0.0.0:9353 without being asked; here only when asked.)
    #[arg(long = "metrics-listen-address", value_name = "IP:PORT", value_parser = listen_address)]
    pub metrics_listen_address: Option<SocketAddr>,
    /// What the Corefile does not say itself.
    #[command(flatten)]
    pub placeholders: Placeholders,
    /// Put the addresses of `-localip` on a device of our own.
    #[arg(
        long = "setupinterface",
        visible_alias = "setup-interface",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub setup_interface: bool,
    /// Name of that device.
    #[arg(
        long = "interfacename",
        visible_alias = "interface-name",
        value_name = "NAME",
        default_value = "nodestub"
    )]
    pub interface_name: String,
    /// Addresses of Services (ClusterIPs) to answer on as well; kube-proxy serves them while nobody listens. Those of
    /// `-localip` that are `KUBE_DNS_SERVICE_HOST` count without being named.
    #[arg(long = "intercept", value_name = "IP,...", value_delimiter = ',', env = "NODESTUB_INTERCEPT")]
    pub intercept: Vec<IpAddr>,
    /// Where the kernel sends queries while nobody listens on a local address: one for each family. By default the
    /// Service of `-upstreamsvc`, else `KUBE_DNS_SERVICE_HOST`.
    #[arg(long = "fallback", value_name = "IP,...", value_delimiter = ',', env = "NODESTUB_FALLBACK")]
    pub fallback: Vec<IpAddr>,
    /// Whether the kernel answers from there at all.
    #[arg(
        long = "fail-open",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub fail_open: bool,
    /// How often the address and the rules are looked at, and put right; in seconds, or with a unit (`60s`, `2m`).
    #[arg(
        long = "syncinterval",
        visible_alias = "sync-interval",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = duration
    )]
    pub sync_interval: Duration,
    /// Accepted for node-cache's sake: the address and the rules stay at the end in any case; `nodestub-resolver
    /// cleanup` takes them away.
    #[arg(
        long = "skipteardown",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub skip_teardown: bool,
    /// Keep DNS to the addresses of `-localip` out of connection tracking. By nftables, whatever the name says.
    #[arg(
        long = "setupiptables",
        visible_alias = "setup-rules",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub setup_rules: bool,
    /// Port of the `health` endpoint on the addresses of `-localip`; kept out of connection tracking as well.
    #[arg(long = "health-port", value_name = "PORT", default_value = "8080")]
    pub health_port: NonZeroU16,
    /// Most bytes that all kept answers of all zones weigh together, in MiB.
    #[arg(long = "cache-size", value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub cache_mib: u16,
    /// Take over from a resolver that runs, and hand over to a newer one: both meet under this name in the network
    /// namespace. Default with `-localip`: its first address and the port; else, or if empty, there is no handover.
    #[arg(long = "handover", value_name = "NAME", value_parser = rendezvous)]
    pub handover: Option<String>,
}

/// What a Corefile does not say itself.
#[derive(Debug, Clone, Args)]
pub struct Placeholders {
    /// Addresses to listen on, for `__PILLAR__LOCAL__DNS__`; set up on this node.
    #[arg(
        long = "localip",
        visible_alias = "local-address",
        value_name = "IP,...",
        value_delimiter = ',',
        env = "NODESTUB_LOCAL_ADDRESS",
        value_parser = optional_address
    )]
    pub local_addresses: Vec<Option<IpAddr>>,
    /// Service of the cluster DNS, for `__PILLAR__CLUSTER__DNS__`; its address is read from `<NAME>_SERVICE_HOST`.
    #[arg(
        long = "upstreamsvc",
        visible_alias = "upstream-service",
        value_name = "NAME",
        default_value = "kube-dns"
    )]
    pub upstream_service: String,
    /// The cluster's domain, for `__PILLAR__DNS__DOMAIN__`.
    #[arg(long = "cluster-domain", value_name = "NAME", env = "NODESTUB_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Servers for `__PILLAR__UPSTREAM__SERVERS__` instead of those in /etc/resolv.conf.
    #[arg(long = "upstream-servers", value_name = "IP[:PORT],...", value_delimiter = ',', value_parser = server)]
    pub upstream_servers: Vec<SocketAddr>,
    /// Port of zones that name none.
    #[arg(long = "dns.port", visible_alias = "port", value_name = "PORT", default_value = "53")]
    pub port: NonZeroU16,
}

impl Serve {
    /// The file to read: the template where it is there, else the Corefile.
    pub fn corefile(&self) -> &Path {
        if self.base_corefile.exists() { &self.base_corefile } else { &self.conf }
    }
}

impl Placeholders {
    /// The addresses of `-localip`.
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        self.local_addresses.iter().flatten().copied().collect()
    }

    /// For the Corefile's reader. `variable` looks up an environment variable.
    pub fn options(&self, variable: impl Fn(&str) -> Option<String>) -> Options {
        let service = self.upstream_service.to_uppercase().replace('-', "_");
        let cluster_dns = variable(&format!("{service}_SERVICE_HOST")).and_then(|text| text.parse().ok());
        Options {
            default_port: self.port.get(),
            cluster_domain: self.cluster_domain.clone(),
            local_addresses: self.local_addresses(),
            cluster_dns: cluster_dns.into_iter().collect(),
            upstream_servers: (!self.upstream_servers.is_empty()).then(|| self.upstream_servers.clone()),
        }
    }
}

/// Go programs take `-flag` for `--flag`, and users of `node-cache` write it so. Short flags of several letters do not
/// exist here, so one dash in front of a long name is not ambiguous.
pub fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let long = |argument: &OsString| {
        let text = argument.to_str()?;
        let name = text.strip_prefix('-')?;
        let is_long = name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic());
        is_long.then(|| OsString::from(format!("-{text}")))
    };
    arguments.into_iter().map(|argument| long(&argument).unwrap_or(argument)).collect()
}

/// NodeLocal's manifest leaves an empty item where kube-dns's address would stand (`-localip 169.254.20.10,`).
fn optional_address(text: &str) -> Result<Option<IpAddr>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{text:?} is not an IP address"))
}

/// A Go duration of one unit, or seconds. (node-cache takes a Go duration and multiplies it by a second, so that all
/// values but its default end in an overflow; here the unit counts.)
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (_, unit) = text.split_at(digits.len());
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?}: give seconds, or a number with s, m or h")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration"))?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?}: from 1 second to 1 day")),
    }
}

/// `:9353` is every address, as in Go.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| format!("{text:?} is not an address with a port, such as 127.0.0.1:9353"))
}

/// The kernel's room for the name of an abstract socket, less what we put in front.
fn rendezvous(text: &str) -> Result<String, String> {
    const MOST: usize = 80;
    if text.len() <= MOST { Ok(text.to_owned()) } else { Err(format!("longer than {MOST} bytes")) }
}

fn server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)));
    address.map_err(|_| format!("{text:?} is neither an IP address nor one with a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        let words = line.split(' ').map(OsString::from);
        Arguments::try_parse_from(with_two_dashes(words)).unwrap()
    }

    #[test]
    fn the_arguments_of_nodelocals_manifest_are_accepted_verbatim() {
        let line =
            "node-cache -localip 169.254.20.10,10.96.0.10 -conf /etc/Corefile -upstreamsvc kube-dns-upstream";
        let arguments = parse(line).serve;
        assert_eq!(arguments.conf, PathBuf::from("/etc/Corefile"));
        assert_eq!(arguments.placeholders.local_addresses().len(), 2);
        let options = arguments
            .placeholders
            .options(|name| (name == "KUBE_DNS_UPSTREAM_SERVICE_HOST").then(|| "10.96.7.7".to_owned()));
        assert_eq!(options.cluster_dns, ["10.96.7.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn an_empty_item_in_localip_is_passed_over_and_a_wrong_one_refused() {
        assert_eq!(parse("x -localip 169.254.20.10,").serve.placeholders.local_addresses().len(), 1);
        let words = ["x", "--localip", "169.254.20"].map(OsString::from);
        assert!(Arguments::try_parse_from(words).is_err());
    }

    #[test]
    fn an_empty_handover_is_said_and_not_left_out() {
        assert_eq!(parse("x --handover=").serve.handover.unwrap(), "");
        assert_eq!(parse("x -handover blue").serve.handover.unwrap(), "blue");
        assert_eq!(parse("x").serve.handover, None);
        assert!(
            Arguments::try_parse_from(["x".to_owned(), format!("--handover={}", "n".repeat(81))]).is_err()
        );
    }

    #[test]
    fn switches_take_a_value_as_in_go() {
        assert!(!parse("x -setupinterface=false").serve.setup_interface);
        assert!(parse("x -setupiptables").serve.setup_rules);
        assert!(parse("x --setup-rules=true -interfacename=other").serve.setup_rules);
    }
}
