//! What node-cache and its successor node-local-dns have beside the Corefile: kube-dns's ConfigMap, where metrics are
//! served and how, and their flags.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{HANG, binary, get, ip, patient, socket, upstream_in};
use nodestub_lab::skip::{can_make_namespaces, skip};
use nodestub_lab::upstream::zone;
use nodestub_lab::{Daemon, Netns, Signal, Upstream, ask};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const METRICS: &str = "127.0.0.1:9253";

/// Shaped as NodeLocal's own, in small.
const TEMPLATE: &str = "\
cluster.local:53 {
    hosts {
        10.96.0.1 kubernetes.default.svc.cluster.local
    }
    bind __PILLAR__LOCAL__DNS__
    prometheus __PROMETHEUS__ENDPOINT__
}
.:53 {
    errors
    cache 30
    bind __PILLAR__LOCAL__DNS__
    forward . __PILLAR__UPSTREAM__SERVERS__ {
            force_tcp
    }
}
";

/// A node with three nameservers that say who they are.
struct Node {
    net: Netns,
    folder: TempDir,
    site: Upstream,
    named: Upstream,
    acme: Upstream,
}

impl Node {
    fn new(test: &str) -> Option<Self> {
        if !can_make_namespaces(test) {
            return None;
        }
        let net = Netns::new().unwrap();
        let server = |address: &str, says: &str| {
            let names = ["who.example.com.", "who.acme.local."].map(|name| (name, ip(says)));
            upstream_in(&net, address, zone(1, &names))
        };
        let (site, named, acme) = (
            server("127.0.0.2:5302", "192.0.2.2"),
            server("127.0.0.3:53", "192.0.2.3"),
            server("127.0.0.4:5304", "192.0.2.4"),
        );
        let node = Self { net, folder: tempfile::tempdir().unwrap(), site, named, acme };
        std::fs::create_dir(node.path("kube-dns")).unwrap();
        node.write("Corefile.base", TEMPLATE);
        Some(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let mut command = binary();
        command.args([
            "-localip",
            "127.0.0.1",
            "-setupinterface=false",
            "-setupiptables=false",
            "-basecorefile",
        ]);
        command.arg(self.path("Corefile.base")).arg("-kubednscm").arg(self.path("kube-dns"));
        command
            .args(["--upstream-servers", "127.0.0.2:5302", "-prometheus-listen-address", METRICS])
            .args(more);
        let daemon = self.net.spawn(command).unwrap();
        daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
        daemon
    }

    fn reload(&self, daemon: &mut Daemon) {
        let reloaded = |daemon: &Daemon| {
            daemon.lines().iter().filter(|line| line.contains("the Corefile was reloaded")).count()
        };
        let before = reloaded(daemon);
        daemon.signal(Signal::USR1).unwrap();
        let end = Instant::now() + HANG;
        while reloaded(daemon) == before {
            assert!(Instant::now() < end, "{}", daemon.lines().join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Who answers for this name.
    fn who(&self, name: &str) -> String {
        let server = SocketAddr::new(ip("127.0.0.1"), 53);
        let answer = self.net.run(|| ask(server, name, "A", &patient())).unwrap().unwrap();
        assert_eq!(answer.rcode, "NOERROR", "{name}");
        answer.data().join(" ")
    }

    fn refused(&self) -> String {
        let (status, page) = self.net.run(|| get(socket(METRICS), "/metrics")).unwrap();
        assert_eq!(status, 200);
        let sample = "coredns_nodecache_setup_errors_total{errortype=\"configmap\"} ";
        page.lines().find_map(|line| line.strip_prefix(sample)).unwrap().to_owned()
    }
}

#[test]
fn kube_dnss_configmap_gives_domains_and_upstreams_of_their_own_and_is_followed() {
    let test = "kube_dnss_configmap_gives_domains_and_upstreams_of_their_own_and_is_followed";
    let Some(node) = Node::new(test) else { return };
    let mut daemon = node.start(&[]);
    assert_eq!(node.who("who.example.com"), "192.0.2.2");
    // The node's own servers are forced to TCP by this template.
    assert!(node.site.received().iter().all(|one| one.transport == nodestub_lab::Transport::Tcp));

    node.write("kube-dns/stubDomains", r#"{"acme.local": ["127.0.0.4:5304"]}"#);
    node.write("kube-dns/upstreamNameservers", r#"["127.0.0.3"]"#);
    node.write("kube-dns/.hidden", "not JSON");
    node.reload(&mut daemon);
    assert_eq!(node.who("who.acme.local"), "192.0.2.4");
    assert_eq!(node.who("who.example.com"), "192.0.2.3");
    assert_eq!(node.who("kubernetes.default.svc.cluster.local"), "10.96.0.1");
    // Named ones are not.
    assert!(node.named.received().iter().all(|one| one.transport == nodestub_lab::Transport::Udp));
    assert!(!node.acme.received().is_empty());
    assert_eq!(node.refused(), "0");

    // Taken away again, all is as before.
    std::fs::remove_file(node.path("kube-dns/stubDomains")).unwrap();
    std::fs::remove_file(node.path("kube-dns/upstreamNameservers")).unwrap();
    node.reload(&mut daemon);
    assert_eq!(node.who("who.acme.local"), "192.0.2.2");
    assert_eq!(node.who("who.example.com"), "192.0.2.2");
}

#[test]
fn a_bad_configmap_is_refused_with_its_place_and_what_it_said_before_stays() {
    let Some(node) = Node::new("a_bad_configmap_is_refused_with_its_place_and_what_it_said_before_stays")
    else {
        return;
    };
    node.write("kube-dns/stubDomains", r#"{"acme.local": ["127.0.0.4:5304"]}"#);
    let mut daemon = node.start(&[]);
    assert_eq!(node.who("who.acme.local"), "192.0.2.4");

    node.write("kube-dns/stubDomains", "{\n    \"acme.local\": [127]\n}");
    node.reload(&mut daemon);
    let said = daemon.wait_for_line(HANG, |line| line.contains("is refused")).unwrap();
    assert!(
        said.contains("kube-dns/stubDomains:2:22: invalid type: integer `127`, expected a string"),
        "{said}"
    );
    assert_eq!(node.who("who.acme.local"), "192.0.2.4");
    assert_eq!(node.refused(), "1");

    // The Corefile is followed all the while, and what is known is not said again.
    node.write("Corefile.base", &TEMPLATE.replace("10.96.0.1 ", "10.96.0.2 "));
    node.reload(&mut daemon);
    assert_eq!(node.who("kubernetes.default.svc.cluster.local"), "10.96.0.2");
    assert_eq!(node.who("who.acme.local"), "192.0.2.4");
    assert_eq!(node.refused(), "1");

    // A domain that the Corefile has already.
    node.write("kube-dns/stubDomains", r#"{"cluster.local": ["127.0.0.4:5304"]}"#);
    node.reload(&mut daemon);
    assert_eq!(node.who("kubernetes.default.svc.cluster.local"), "10.96.0.2");
    assert_eq!(node.who("who.acme.local"), "192.0.2.4");
    assert_eq!(node.refused(), "2");
}

#[test]
fn a_configmap_that_is_bad_at_the_start_or_not_there_keeps_nothing_from_being_served() {
    let test = "a_configmap_that_is_bad_at_the_start_or_not_there_keeps_nothing_from_being_served";
    let Some(node) = Node::new(test) else { return };
    node.write("kube-dns/upstreamNameservers", r#"["ns.example.com"]"#);
    let mut daemon = node.start(&[]);
    let said = daemon.wait_for_line(HANG, |line| line.contains("is refused")).unwrap();
    assert!(said.contains("\"ns.example.com\" is neither an IP address nor one with a port"), "{said}");
    assert_eq!(node.who("who.example.com"), "192.0.2.2");
    assert_eq!(node.refused(), "1");
    std::fs::rename(node.path("kube-dns"), node.path("elsewhere")).unwrap();
    node.reload(&mut daemon);
    assert_eq!(node.refused(), "2");
    daemon.wait_for_line(HANG, |line| line.contains("there is no such folder")).unwrap();
    assert_eq!(node.who("who.example.com"), "192.0.2.2");

    // `check` says it too, and fails.
    std::fs::rename(node.path("elsewhere"), node.path("kube-dns")).unwrap();
    let mut check = binary();
    check.arg("check").arg(node.path("Corefile.base")).arg("-kubednscm").arg(node.path("kube-dns"));
    let output = check.args(["-localip", "127.0.0.1"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("upstreamNameservers: \"ns.example.com\""));
}

/// Certificates in a folder, as files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, node: &Node, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        node.write(&format!("{name}.crt"), &certificate.pem());
        node.write(&format!("{name}.key"), &key.serialize_pem());
    }
}

/// Whether curl gets the metrics by HTTPS.
fn gets(node: &Node, more: &[&str]) -> bool {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"])
        .arg(node.path("ca.crt"));
    for word in more {
        match word.strip_prefix('@') {
            Some(name) => command.arg(node.path(name)),
            None => command.arg(word),
        };
    }
    command.arg("https://127.0.0.1:9353/metrics");
    let output = node.net.output(command).unwrap();
    output.status.success()
        && String::from_utf8_lossy(&output.stdout).contains("coredns_nodecache_setup_errors")
}

#[test]
fn metrics_are_served_by_https_to_whom_the_flags_let_in() {
    let test = "metrics_are_served_by_https_to_whom_the_flags_let_in";
    if Command::new("curl").arg("--version").output().is_err() {
        return skip(test, "the program curl is missing (Debian: apt-get install curl)");
    }
    let Some(node) = Node::new(test) else { return };
    let (ours, theirs) = (Authority::new(), Authority::new());
    node.write("ca.crt", &ours.pem);
    ours.sign(&node, "server");
    ours.sign(&node, "client");
    theirs.sign(&node, "stranger");
    let (ca, certificate, key) = (node.path("ca.crt"), node.path("server.crt"), node.path("server.key"));
    let files = [certificate.to_str().unwrap(), key.to_str().unwrap(), ca.to_str().unwrap()];
    let [client, stranger] = [
        ["--cert", "@client.crt", "--key", "@client.key"],
        ["--cert", "@stranger.crt", "--key", "@stranger.key"],
    ];
    // Type, and whether nobody's, our client's and a stranger's certificate are let in.
    for (kind, none, known, unknown) in [
        ("NoClientCert", true, true, true),
        ("RequestClientCert", true, true, true),
        ("RequireAnyClientCert", false, true, true),
        ("VerifyClientCertIfGiven", true, true, false),
        ("RequireAndVerifyClientCert", false, true, false),
    ] {
        let mut flags = vec!["-tls-enabled=1", "-tls-cert-file", files[0], "-tls-private-key-file", files[1]];
        flags.extend(["-tls-client-auth-type", kind]);
        if kind.contains("Verify") {
            flags.extend(["-tls-client-ca-file", files[2]]);
        }
        let _daemon = node.start(&flags);
        let seen = [gets(&node, &[]), gets(&node, &client), gets(&node, &stranger)];
        assert_eq!(seen, [none, known, unknown], "{kind}");
        assert!(!gets(&node, &["--tls-max", "1.2"]), "{kind}: TLS 1.2");
    }

    let mut flags = vec!["-tls-enabled", "-tls-cert-file", files[0], "-tls-private-key-file", files[1]];
    flags.extend(["-tls-min-version=TLS12"]);
    let daemon = node.start(&flags);
    assert!(gets(&node, &["--tls-max", "1.2"]) && gets(&node, &[]));
    // By HTTP there is nothing.
    let plain = node.net.run(|| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9353").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        answer
    });
    assert!(!plain.unwrap().starts_with(b"HTTP"));

    // A half-written pair is refused, the last good one stays; a new one is taken up.
    node.write("server.key", "half of");
    assert!(gets(&node, &[]));
    daemon.wait_for_line(HANG, |line| line.contains("the last good one stays")).unwrap();
    let renewed = Authority::new();
    renewed.sign(&node, "server");
    node.write("ca.crt", &renewed.pem);
    assert!(gets(&node, &[]));
}

#[test]
fn what_cannot_be_served_by_https_is_refused_at_the_start_and_named() {
    let Some(node) = Node::new("what_cannot_be_served_by_https_is_refused_at_the_start_and_named") else {
        return;
    };
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.sign(&node, "server");
    theirs.sign(&node, "other");
    node.write("ca.crt", &ours.pem);
    node.write("empty.crt", "");
    for (flags, expected) in [
        (vec![], "-tls-cert-file /etc/ssl/tls.crt"),
        (vec!["-tls-cert-file", "@empty.crt"], "empty.crt: no certificate in PEM"),
        (vec!["-tls-cert-file", "@server.crt"], "-tls-private-key-file /etc/ssl/tls.key"),
        (
            vec!["-tls-cert-file", "@server.crt", "-tls-private-key-file", "@other.key"],
            "cannot be served together",
        ),
        (
            vec![
                "-tls-cert-file",
                "@server.crt",
                "-tls-private-key-file",
                "@server.key",
                "-tls-client-ca-file",
                "@ca.crt",
            ],
            "-tls-client-auth-type that none is asked",
        ),
        (
            vec![
                "-tls-cert-file",
                "@server.crt",
                "-tls-private-key-file",
                "@server.key",
                "-tls-client-auth-type",
                "RequireAndVerifyClientCert",
            ],
            "name their authorities with -tls-client-ca-file",
        ),
        (vec!["-tls-client-auth-type", "Maybe"], "possible values"),
        (vec!["-tls-min-version", "TLS11"], "possible values"),
    ] {
        let mut command = binary();
        command.args([
            "-localip",
            "127.0.0.1",
            "-setupinterface=false",
            "-setupiptables=false",
            "-tls-enabled",
        ]);
        command.arg("-conf").arg(node.path("Corefile.base"));
        for flag in &flags {
            match flag.strip_prefix('@') {
                Some(name) => command.arg(node.path(name)),
                None => command.arg(flag),
            };
        }
        let output = node.net.output(command).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{flags:?}: {said}");
    }
}

#[test]
fn corednss_own_flags_do_what_they_do_there() {
    let run = |flag: &str| {
        let output = binary().arg(flag).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run("-plugins").lines().any(|line| line == "dns.forward"));
    assert!(run("-version").starts_with("nodestub-resolver "));
    let Some(node) = Node::new("corednss_own_flags_do_what_they_do_there") else { return };
    let mut command = binary();
    command.args([
        "-quiet",
        "-localip",
        "127.0.0.1",
        "-setupinterface=false",
        "-setupiptables=false",
        "-p",
        "5353",
    ]);
    node.write(
        "Corefile",
        ". {\n    bind 127.0.0.1\n    hosts {\n        192.0.2.9 who.example.com\n    }\n}\n",
    );
    let mut daemon = node
        .net
        .spawn({
            command.arg("-conf").arg(node.path("Corefile"));
            command
        })
        .unwrap();
    let end = Instant::now() + HANG;
    let answered =
        || node.net.run(|| ask(socket("127.0.0.1:5353"), "who.example.com", "A", &patient())).unwrap();
    while answered().is_err() {
        assert!(Instant::now() < end, "{}", daemon.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(daemon.terminate(HANG).unwrap().success());
    assert_eq!(daemon.lines(), Vec::<String>::new());
}

#[test]
fn flags_about_the_node_have_their_effect_by_whichever_dashes() {
    let Some(node) = Node::new("flags_about_the_node_have_their_effect_by_whichever_dashes") else { return };
    node.write("Corefile", ".:53 {\n    bind 169.254.20.10\n    hosts {\n    }\n}\n");
    let rules = |flags: &[&str]| {
        let output = binary().args(["rules", "-localip", "169.254.20.10"]).args(flags).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(rules(&["-health-port", "8099"]).contains("8099") && !rules(&[]).contains("8099"));
    assert_eq!(rules(&["--health-port=8099"]), rules(&["-health-port=8099"]));
    assert!(rules(&["-dns.port=5353"]).contains("5353"));

    let mut command = binary();
    command.args(["-localip", "169.254.20.10", "-interfacename=other0", "-skipteardown=false", "-conf"]);
    command.arg(node.path("Corefile"));
    let mut daemon = node.net.spawn(command).unwrap();
    daemon.wait_for_line(HANG, |line| line.contains("serving DNS")).unwrap();
    // Where the kernel has no dummy devices, it is said which one was wanted.
    let is_there = node.net.addresses("other0").is_ok();
    assert!(is_there || daemon.lines().iter().any(|line| line.contains("wanted=\"other0\"")));
    daemon.wait_for_line(HANG, |line| line.contains("-skipteardown=false")).unwrap();
    assert!(daemon.terminate(HANG).unwrap().success());
    let device = if is_there { "other0" } else { "lo" };
    let left = node.net.addresses(device).unwrap();
    assert!(left.iter().any(|(address, _)| *address == ip("169.254.20.10")), "the address is gone");
}
