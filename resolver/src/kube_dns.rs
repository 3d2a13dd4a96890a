//! The ConfigMap of kube-dns, as node-cache understands it: domains with nameservers of their own, and nameservers in
//! place of the node's.
//!
//! ```text
//!   FOLDER/stubDomains          {"acme.local": ["10.0.0.53", "10.0.0.54:5353"]}   one server block each, at the end
//!   FOLDER/upstreamNameservers  ["10.1.1.1", "10.1.1.2:5353"]                     for __PILLAR__UPSTREAM__SERVERS__
//! ```
//!
//! The reference is kubernetes-sigs/node-local-dns, `cmd/node-cache/app/configmap.go` and `pkg/dns/config`; so is the
//! odd rule that named nameservers are asked by UDP where the template's block for `.` forces TCP, and only where that
//! block is written with just these spaces. What differs:
//!
//! - Domains come in alphabetical order, and not in any.
//! - A domain without nameservers is refused; there it makes a Corefile that ends the process.
//! - What does not read is counted as well as what does not make sense; there it is only said.
//! - It is read when the Corefile is, and not by a clock of its own: as `reload` or `-reloadwithsignal` say, which there
//!   are needed as well for anything to happen.
//! - A nameserver is an address, with `dns://` in front or without; `tls://` is refused. There the name of a file is
//!   passed on, which nobody can have meant.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

const STUB_DOMAINS: &str = "stubDomains";
const UPSTREAM_NAMESERVERS: &str = "upstreamNameservers";

/// A ConfigMap may have a mebibyte in all.
const MAX_BYTES: u64 = 1 << 20;

/// Nameservers in place of the node's; as many as a resolv.conf may name.
const MAX_UPSTREAMS: usize = 3;

/// What node-cache replaces by one line without `force_tcp`, blanks and all.
const FORCES_TCP: &str = "\n    forward . __PILLAR__UPSTREAM__SERVERS__ {\n            force_tcp\n    }\n";

/// In its place, with as many lines, so that messages name the right ones.
const FORCES_NOTHING: &str = "\n    forward . __PILLAR__UPSTREAM__SERVERS__\n\n\n";

/// What the ConfigMap says; by default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeDns {
    stub_domains: BTreeMap<String, Vec<SocketAddr>>,
    upstream_nameservers: Vec<SocketAddr>,
}

/// What is wrong with the ConfigMap, and where.
#[derive(Debug)]
pub struct Refused {
    /// A file, or the folder.
    path: PathBuf,
    /// Line and column, where there is one.
    place: Option<(usize, usize)>,
    problem: String,
}

/// Reads the two files of a folder. Neither need be there.
///
/// # Errors
/// The folder or a file cannot be read, or makes no sense.
pub fn read(folder: &Path) -> Result<KubeDns, Refused> {
    let refused = |path: PathBuf, problem: String| Refused { path, place: None, problem };
    if !folder.is_dir() {
        return Err(refused(folder.to_owned(), "there is no such folder".to_owned()));
    }
    let text = |name: &str| {
        let path = folder.join(name);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(refused(path, format!("longer than {MAX_BYTES} bytes")));
            }
            _ => {}
        }
        let text = std::fs::read_to_string(&path);
        text.map(|text| Some((path.clone(), text)))
            .map_err(|error| refused(path, format!("cannot be read: {error}")))
    };
    let mut kube_dns = KubeDns::default();
    if let Some((path, text)) = text(STUB_DOMAINS)? {
        kube_dns.stub_domains = stub_domains(&text).map_err(|problem| problem.in_file(path))?;
    }
    if let Some((path, text)) = text(UPSTREAM_NAMESERVERS)? {
        kube_dns.upstream_nameservers =
            upstream_nameservers(&text).map_err(|problem| problem.in_file(path))?;
    }
    Ok(kube_dns)
}

impl KubeDns {
    /// How many domains have nameservers of their own.
    pub fn stub_domains(&self) -> usize {
        self.stub_domains.len()
    }

    /// How many nameservers stand in place of the node's.
    pub fn upstream_nameservers(&self) -> usize {
        self.upstream_nameservers.len()
    }

    /// Those nameservers.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.upstream_nameservers
    }

    /// Whether a Corefile may say by which protocol these nameservers are asked: node-cache takes `force_tcp` away only
    /// where the block is written with just its spaces.
    pub fn leaves_protocol(&self, corefile: &str) -> bool {
        !self.upstream_nameservers.is_empty()
            && corefile.contains("__PILLAR__UPSTREAM__SERVERS__")
            && !corefile.contains(FORCES_TCP)
    }

    /// The Corefile's text with what is to be changed in it and added to it.
    pub fn apply(&self, corefile: &str, local: &[IpAddr], port: u16) -> String {
        let mut text = corefile.to_owned();
        if !self.upstream_nameservers.is_empty() {
            text = text.replace(FORCES_TCP, FORCES_NOTHING);
        }
        if !self.stub_domains.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let list = |values: &[String]| values.join(" ");
        let bind = list(&local.iter().map(ToString::to_string).collect::<Vec<_>>());
        let bind = if bind.is_empty() { bind } else { format!("    bind {bind}\n") };
        for (domain, servers) in &self.stub_domains {
            let servers = list(&servers.iter().map(ToString::to_string).collect::<Vec<_>>());
            text.push_str(&format!(
                "{domain}:{port} {{\n    errors\n    cache 30\n{bind}    forward . {servers}\n}}\n"
            ));
        }
        text
    }
}

/// What is wrong within a file.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    place: Option<(usize, usize)>,
    text: String,
}

impl Problem {
    fn new(text: String) -> Self {
        Self { place: None, text }
    }

    fn in_file(self, path: PathBuf) -> Refused {
        Refused { path, place: self.place, problem: self.text }
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        // The place is told apart.
        let text = text.split(" at line ").next().unwrap_or_default().to_owned();
        Self { place: Some((error.line(), error.column())), text }
    }
}

fn stub_domains(text: &str) -> Result<BTreeMap<String, Vec<SocketAddr>>, Problem> {
    // `null` is nothing, as in Go.
    let domains: Option<BTreeMap<String, Option<Vec<String>>>> = serde_json::from_str(text)?;
    let mut checked = BTreeMap::new();
    for (domain, servers) in domains.unwrap_or_default() {
        if !is_subdomain(&domain) {
            return Err(Problem::new(format!(
                "{domain:?} is not a domain name in lower case, such as acme.local"
            )));
        }
        let servers = servers.unwrap_or_default();
        if servers.is_empty() {
            return Err(Problem::new(format!("{domain:?} has no nameserver")));
        }
        let servers = servers.iter().map(|text| server(text)).collect::<Result<_, _>>()?;
        checked.insert(domain, servers);
    }
    Ok(checked)
}

fn upstream_nameservers(text: &str) -> Result<Vec<SocketAddr>, Problem> {
    let servers: Option<Vec<String>> = serde_json::from_str(text)?;
    let servers = servers.unwrap_or_default();
    if servers.len() > MAX_UPSTREAMS {
        return Err(Problem::new(format!("more than {MAX_UPSTREAMS} nameservers")));
    }
    servers.iter().map(|text| server(text)).collect()
}

fn server(text: &str) -> Result<SocketAddr, Problem> {
    let text = text.strip_prefix("dns://").unwrap_or(text);
    let address = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)));
    match address {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(Problem::new(format!("{text:?} is neither an IP address nor one with a port"))),
    }
}

/// RFC 1123, as Kubernetes checks it.
fn is_subdomain(domain: &str) -> bool {
    let is_inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(is_inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    domain.len() <= 253 && domain.split('.').all(is_label)
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_written_with_its_transport() {
        let found = [server("dns://10.0.0.1"), server("dns://[fd00::1]:54")].map(Result::unwrap);
        assert_eq!(found.map(|found| found.to_string()), ["10.0.0.1:53", "[fd00::1]:54"]);
    }

    fn with(stubs: &str, upstreams: &str) -> KubeDns {
        KubeDns {
            stub_domains: stub_domains(stubs).unwrap(),
            upstream_nameservers: upstream_nameservers(upstreams).unwrap(),
        }
    }

    #[test]
    fn each_domain_becomes_the_block_that_node_cache_appends() {
        let stubs = r#"{"b.local": ["10.0.0.2:5353"], "a.local": ["10.0.0.1", "fd00::1"]}"#;
        let text = with(stubs, "null").apply(". {\n}", &["169.254.20.10".parse().unwrap()], 53);
        assert_eq!(
            text,
            ". {\n}\na.local:53 {\n    errors\n    cache 30\n    bind 169.254.20.10\n    forward . 10.0.0.1:53 [fd00::1]:53\n}\n\
             b.local:53 {\n    errors\n    cache 30\n    bind 169.254.20.10\n    forward . 10.0.0.2:5353\n}\n"
        );
    }

    #[test]
    fn named_upstreams_are_asked_by_udp_only_where_the_block_has_just_these_spaces() {
        let forced = format!(".:53 {{\n    errors{FORCES_TCP}    loop\n}}\n");
        let named = with("{}", r#"["10.1.1.1"]"#);
        let changed = named.apply(&forced, &[], 53);
        assert!(
            !changed.contains("force_tcp") && changed.contains("forward . __PILLAR__UPSTREAM__SERVERS__\n")
        );
        assert_eq!(changed.lines().count(), forced.lines().count());
        let otherwise = forced.replace("            force_tcp", "        force_tcp");
        assert_eq!(named.apply(&otherwise, &[], 53), otherwise);
        assert!(named.leaves_protocol(&otherwise) && !named.leaves_protocol(&forced));
        assert_eq!(KubeDns::default().apply(&forced, &[], 53), forced);
    }

    #[test]
    fn refuses_what_node_cache_refuses() {
        for bad in [
            "",
            "[]",
            r#"{"a.local": "10.0.0.1"}"#,
            r#"{"a.local": ["ns.example.com"]}"#,
            r#"{"a.local": ["tls://10.0.0.1"]}"#,
            r#"{"a.local": ["10.0.0.1:99999"]}"#,
            r#"{"A.local": ["10.0.0.1"]}"#,
            r#"{"a..local": ["10.0.0.1"]}"#,
            r#"{"a.local": []}"#,
            r#"{"a.local": ["10.0.0.1"]} x"#,
        ] {
            assert!(stub_domains(bad).is_err(), "{bad}");
        }
        for bad in
            ["", "{}", r#"["x"]"#, r#"["10.0.0.1:0"]"#, r#"["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]"#]
        {
            assert!(upstream_nameservers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_the_file_the_line_and_the_column() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(STUB_DOMAINS), "{\n  \"a.local\": 7\n}").unwrap();
        let said = read(folder.path()).unwrap_err().to_string();
        assert!(said.contains("/stubDomains:2:14: invalid type: integer `7`, expected a sequence"), "{said}");
        assert!(
            read(&folder.path().join("none")).unwrap_err().to_string().ends_with("there is no such folder")
        );
    }
}
