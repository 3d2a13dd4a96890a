//! The command line.
//!
//! ```text
//!   nodestub-resolver [-conf FILE] [-localip IP,...] ...     serves
//!   nodestub-resolver check FILE                             says what is wrong with a Corefile, and serves nothing
//!   nodestub-resolver cleanup [--host-root FOLDER] [--force] takes away what was ever set up on this node
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

use crate::admin_tls::TlsFlags;
use crate::control::Question;
use crate::surroundings::addresses;

/// Where node-cache looks for kube-dns's ConfigMap unasked.
const KUBE_DNS: &str = "/etc/kube-dns";

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
        /// Addresses that nobody may listen on, and no pod have in its resolv.conf.
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
        /// The node's `/`, where its container runtime is to be seen: a hostPath mount, when this runs in a pod.
        #[arg(long = "host-root", value_name = "FOLDER", default_value = "/")]
        host_root: PathBuf,
        /// Whoever listens, and whoever uses them.
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

/// How queries come to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// To a local address, which is put on this node.
    Local,
    /// To addresses of Services as well.
    Intercept,
    /// To this pod's own address, sent there by somebody else.
    Redirect,
}

/// Flags for serving.
#[derive(Debug, Clone, Args)]
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
        default_value = "false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = switch,
        action = clap::ArgAction::Set
    )]
    pub reload_with_signal: bool,
    /// Write the process id to this file once queries are answered.
    #[arg(long = "pidfile", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Serve `/metrics` here as well. (node-cache does so on 0.0.0.0:9353 without being asked; here only when asked.)
    #[arg(long = "metrics-listen-address", value_name = "IP:PORT", value_parser = listen_address)]
    pub metrics_listen_address: Option<SocketAddr>,
    /// How that is served.
    #[command(flatten)]
    pub metrics_tls: TlsFlags,
    /// Print the directives that a Corefile may have, and serve nothing.
    #[arg(long = "plugins", value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = switch, action = clap::ArgAction::Set)]
    pub plugins: bool,
    /// Say warnings and errors only. (`NODESTUB_LOG` says more precisely what is said.)
    #[arg(long = "quiet", value_name = "BOOL", default_value = "false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = switch, action = clap::ArgAction::Set)]
    pub quiet: bool,
    /// What the Corefile does not say itself.
    #[command(flatten)]
    pub placeholders: Placeholders,
    /// How queries come here: to a local address (`local`), to addresses of Services as well (`intercept`), or sent to
    /// this pod's own address by somebody else, as by a local redirect policy of Cilium (`redirect`: nothing of the node
    /// is touched, and `__PILLAR__LOCAL__DNS__` is every address). By default as the other flags say.
    #[arg(long = "mode", value_name = "MODE", env = "NODESTUB_MODE")]
    pub mode: Option<Mode>,
    /// Put the addresses of `-localip` on a device of our own. By default true, but in mode redirect.
    #[arg(
        long = "setupinterface",
        visible_alias = "setup-interface",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = switch,
        action = clap::ArgAction::Set
    )]
    pub setup_interface: Option<bool>,
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
    /// Where the kernel sends queries while nobody listens on a local address: one for each family. By default
    /// `KUBE_DNS_SERVICE_HOST`, else the Service of `-upstreamsvc`.
    #[arg(long = "fallback", value_name = "IP,...", value_delimiter = ',', env = "NODESTUB_FALLBACK")]
    pub fallback: Vec<IpAddr>,
    /// Whether the kernel answers from there at all.
    #[arg(
        long = "fail-open",
        value_name = "BOOL",
        default_value = "true",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = switch,
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
        default_value = "true",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = switch,
        action = clap::ArgAction::Set
    )]
    pub skip_teardown: bool,
    /// Keep DNS to the addresses of `-localip` out of connection tracking. By nftables, whatever the name says. By
    /// default true, but in mode redirect.
    #[arg(
        long = "setupiptables",
        visible_alias = "setup-rules",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = switch,
        action = clap::ArgAction::Set
    )]
    pub setup_rules: Option<bool>,
    /// Port of the `health` endpoint on the addresses of `-localip`; kept out of connection tracking as well.
    #[arg(long = "health-port", value_name = "PORT", default_value = "8080")]
    pub health_port: NonZeroU16,
    /// The ConfigMap `nodestub-facts`, mounted: what the webhook has found about the cluster. Followed while it is there.
    #[arg(
        long = "facts-folder",
        value_name = "FOLDER",
        default_value = "/etc/nodestub-facts",
        env = "NODESTUB_FACTS_FOLDER"
    )]
    pub facts_folder: PathBuf,
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
    /// Folder where the ConfigMap of kube-dns is mounted: its `stubDomains` and `upstreamNameservers` are read with the
    /// Corefile, and again when that is. Default: /etc/kube-dns, where it is there.
    #[arg(long = "kubednscm", visible_alias = "kube-dns-configmap", value_name = "FOLDER", value_parser = maybe_path)]
    pub kube_dns: Option<PathBuf>,
    /// Address for `__PROMETHEUS__ENDPOINT__`.
    #[arg(long = "prometheus-listen-address", value_name = "[IP]:PORT", default_value = ":9253", value_parser = endpoint)]
    pub prometheus_endpoint: String,
    /// Port of zones that name none.
    #[arg(
        short = 'p',
        long = "dns.port",
        visible_alias = "port",
        alias = "p",
        value_name = "PORT",
        default_value = "53"
    )]
    pub port: NonZeroU16,
}

impl Serve {
    /// For the Corefile's reader. In mode redirect there is no local address: what is bound is every one of its family.
    pub fn options(&self, variable: impl Fn(&str) -> Option<String>) -> Options {
        let mut options = self.placeholders.options(variable);
        if self.mode == Some(Mode::Redirect) {
            let wildcards = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
            let local = std::mem::take(&mut options.local_addresses);
            let is_asked = |any: &IpAddr| local.iter().any(|address| address.is_ipv4() == any.is_ipv4());
            options.local_addresses = wildcards.into_iter().filter(is_asked).collect();
        }
        options
    }

    /// Where metrics are served besides what the Corefile says. To ask for HTTPS is to ask for them.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listen_address.or(self.metrics_tls.enabled.then_some(METRICS))
    }

    /// The file to read: the template where it is there, else the Corefile.
    pub fn corefile(&self) -> &Path {
        if self.base_corefile.exists() { &self.base_corefile } else { &self.conf }
    }
}

/// Where node-cache serves its own metrics unasked.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 9353);

impl Placeholders {
    /// The addresses of `-localip`.
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        self.local_addresses.iter().flatten().copied().collect()
    }

    /// The folder of kube-dns's ConfigMap, if there is one.
    pub fn kube_dns_folder(&self) -> Option<PathBuf> {
        // An empty flag is node-cache's own default, which looks there as well.
        let named = self.kube_dns.clone().filter(|folder| !folder.as_os_str().is_empty());
        named.or_else(|| Some(PathBuf::from(KUBE_DNS)).filter(|folder| folder.exists()))
    }

    /// For the Corefile's reader. `variable` looks up an environment variable.
    pub fn options(&self, variable: impl Fn(&str) -> Option<String>) -> Options {
        let service = self.upstream_service.to_uppercase().replace('-', "_");
        let cluster_dns = variable(&format!("{service}_SERVICE_HOST"));
        Options {
            default_port: self.port.get(),
            cluster_domain: self.cluster_domain.clone(),
            local_addresses: self.local_addresses(),
            cluster_dns: cluster_dns.map(|text| addresses(&text)).unwrap_or_default(),
            serve_without_cluster_dns: false,
            upstream_servers: (!self.upstream_servers.is_empty()).then(|| self.upstream_servers.clone()),
            prometheus_endpoint: self.prometheus_endpoint.clone(),
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

/// A path, or nothing, which is the default of some flags of node-cache.
///
/// # Errors
/// None.
pub fn maybe_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// A switch's value, by all of Go's words (`strconv.ParseBool`).
///
/// # Errors
/// Another word.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A Go duration (`1m30s`), or seconds. (node-cache takes a Go duration and multiplies it by a second, so that all
/// values but its default end in an overflow; here the unit counts.)
fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 6] =
        [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let wrong = || format!("{text:?}: give seconds, or numbers with h, m, s or ms");
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
        let number: f64 = number.parse().map_err(|_| wrong())?;
        if behind.is_empty() && rest.len() == text.len() {
            seconds = number;
            break;
        }
        let unit = UNITS.iter().find_map(|(unit, size)| Some((size, behind.strip_prefix(unit)?)));
        let (size, behind) = unit.ok_or_else(wrong)?;
        seconds += number * size;
        rest = behind;
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if (1.0..=86_400.0).contains(&seconds) => Ok(duration),
        _ => Err(format!("{text:?}: from 1 second to 1 day")),
    }
}

/// `:9353` is every address, as in Go.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| format!("{text:?} is not an address with a port, such as 127.0.0.1:9353"))
}

/// Checked here, so that the flag is named and not a place in the Corefile.
fn endpoint(text: &str) -> Result<String, String> {
    listen_address(text).map(|_| text.to_owned())
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
    fn durations_are_gos_or_seconds() {
        let interval = |text: &str| {
            let words = ["x".to_owned(), format!("-syncinterval={text}")].map(OsString::from);
            let parsed = Arguments::try_parse_from(with_two_dashes(words));
            parsed.map(|arguments| arguments.serve.sync_interval.as_millis()).ok()
        };
        assert_eq!(
            ["60", "60s", "1m0s", "1500ms", "0h2m", "1.5s"].map(interval),
            [60_000, 60_000, 60_000, 1_500, 120_000, 1_500].map(Some)
        );
        assert_eq!(["", "0", "-1s", "10ms", "1d", "s", "60 ", "1m30", "25h"].map(interval), [None; 9]);
        assert_eq!(parse("x").serve.sync_interval, Duration::from_secs(60));
    }

    #[test]
    fn https_is_served_where_node_cache_serves_unless_another_address_is_named() {
        assert_eq!(parse("x").serve.metrics_address(), None);
        assert_eq!(parse("x -tls-enabled=1").serve.metrics_address(), Some(METRICS));
        let named = parse("x -tls-enabled -metrics-listen-address 127.0.0.1:1").serve;
        assert_eq!(named.metrics_address().unwrap().port(), 1);
    }

    #[test]
    fn flags_of_klog_are_unknown_as_they_are_to_node_cache() {
        for flag in ["-v=2", "-logtostderr", "-alsologtostderr=true", "-vmodule=a=1"] {
            let words = ["x", flag].map(OsString::from);
            assert!(Arguments::try_parse_from(with_two_dashes(words)).is_err(), "{flag}");
        }
    }

    #[test]
    fn switches_take_a_value_as_in_go() {
        assert_eq!(parse("x -setupinterface=false").serve.setup_interface, Some(false));
        assert_eq!(parse("x -setupiptables").serve.setup_rules, Some(true));
        assert_eq!(parse("x --setup-rules=true -interfacename=other").serve.setup_rules, Some(true));
        assert_eq!(parse("x").serve.setup_rules, None);
        assert_eq!(parse("x -setupinterface=0 -skipteardown=F").serve.setup_interface, Some(false));
        assert_eq!(parse("x -p=5353").serve.placeholders.port.get(), 5353);
        assert_eq!(parse("x -p 5353").serve.placeholders.port.get(), 5353);
    }
}
