//! `kubectl-nodestub` from outside.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

const FACTS: [&str; 3] = ["--cluster-dns=10.96.0.10", "--cluster-domain=cluster.local", "--host-search=none"];
const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {annotations: {nodestub.io/ndots: 'two'}}
    spec:
      containers: [{name: web, image: web}]
      dnsConfig: {searches: [corp.example]}
";

fn explain(manifest: &str, flags: &[&str]) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_kubectl-nodestub"))
        .args(["explain", "-f", "-"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    process.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn foretells_decision_change_and_resolv_conf() {
    let flags = [&FACTS[..], &["--namespace=shop:nodestub.io/inject=enabled"]].concat();
    let expected = r#"Deployment/web in namespace shop
  decision: injected: the pod will ask its node's resolver
  rule: label nodestub.io/inject=enabled on the namespace
  warning: nodestub.io/ndots on the pod cannot be "two"; allowed: 0 to 15
  changes:
      metadata:
        annotations:
          nodestub.io/ndots: two
    +     nodestub.io/revision: REVISION
    +     nodestub.io/status: injected
      spec:
        dnsConfig:
    +     nameservers:
    +     - "169.254.20.10"
    +     - "10.96.0.10"
    +     options:
    +     - name: ndots
    +       value: "5"
          searches:
    +     - shop.svc.cluster.local
    +     - svc.cluster.local
    +     - cluster.local
          - corp.example
    +   dnsPolicy: None
  /etc/resolv.conf:
    search shop.svc.cluster.local svc.cluster.local cluster.local corp.example
    nameserver 169.254.20.10
    nameserver 10.96.0.10
    options ndots:5
"#;
    let text = said(&explain(DEPLOYMENT, &flags));
    let revision = text.split_once("nodestub.io/revision: ").unwrap().1.lines().next().unwrap();
    assert_eq!(revision.trim_matches('"').len(), 16);
    assert_eq!(text.replace(revision, "REVISION"), expected);
}

#[test]
fn names_the_rule_whatever_becomes_of_the_pod() {
    let flags = [
        &FACTS[..],
        &["--namespace=shop:nodestub.io/inject=enabled", "--namespace-annotation=nodestub.io/rollout=98%"],
    ]
    .concat();
    let text = said(&explain(DEPLOYMENT, &flags));
    assert!(text.contains("decision: not_in_rollout: "), "{text}");
    assert!(text.contains("rule: nodestub.io/rollout 98% without Deployment/web\n"), "{text}");
    assert!(text.contains("changes: none"), "{text}");
    let flags =
        [&FACTS[..], &["--namespace=shop:node-local-dns-injection=enabled", "--rollout=99%"]].concat();
    let text = said(&explain(DEPLOYMENT, &flags));
    let rule = "rule: label node-local-dns-injection=enabled on the namespace, nodestub.io/rollout 99% with Deployment/web\n";
    assert!(text.contains(rule), "{text}");
    let text = said(&explain(DEPLOYMENT, &[&FACTS[..], &["--namespace=shop"]].concat()));
    assert!(text.contains("decision: namespace_not_enabled: "), "{text}");
    let text = said(&explain(DEPLOYMENT, &FACTS));
    assert!(text.contains("decision: namespace_unknown: "), "{text}");
}

#[test]
fn explains_every_object_of_a_file_and_takes_the_namespace_by_flag() {
    let manifest = "kind: Pod\nmetadata: {name: a}\nspec: {}\n---\nkind: Pod\nmetadata: {name: b, labels: {nodestub.io/inject: disabled}}\nspec: {}\n";
    let flags = [&FACTS[..], &["-n", "shop:nodestub.io/inject=enabled"]].concat();
    let text = said(&explain(manifest, &flags));
    assert!(text.contains("Pod/a in namespace shop\n  decision: injected"), "{text}");
    assert!(text.contains("Pod/b in namespace shop\n  decision: pod_disabled"), "{text}");
}

#[test]
fn says_what_is_wrong_and_what_to_do() {
    for (manifest, flags, part) in [
        (DEPLOYMENT, &[][..], "--cluster-domain is missing"),
        ("kind: Service", &FACTS[..], "makes no pods: it holds Service"),
        ("a: [", &FACTS[..], "not YAML"),
        (DEPLOYMENT, &["--kubeconfig=/nowhere/at/all"], "/nowhere/at/all"),
    ] {
        let text = refused(&explain(manifest, flags));
        assert!(
            text.contains(part) || (part.starts_with('/') && text.contains("no Kubernetes client")),
            "{text}"
        );
    }
}
