//! The decision in the Common Expression Language, as the API server of Kubernetes 1.36 runs it.
//!
//! Each function here says again what one of `admit`'s does; the vectors hold both to the same answers
//! (`webhook/tests/api_server/policy.rs`).

use std::net::IpAddr;

use crate::admit::compose::{DEFAULT_NDOTS, MAX_NAMESERVERS, MAX_SEARCH_CHARACTERS, MAX_SEARCHES};
use crate::admit::names::MAX_NAME_BYTES;
use crate::admit::options::FLAGS;
use crate::admit::reason::{CUT, MAX_WARNING_BYTES};
use crate::admit::selector::Mark;
use crate::admit::{
    DnsOption, Domain, Facts, FailOpen, Fallback, PodSelector, Policy, Warning, keys, stable_hash,
};

/// A name and what is computed under it.
type Named = (&'static str, String);

/// `admit::names`: a domain with or without its final dot.
const DOMAIN: &str =
    r"^[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)*\.?$";
/// `admit::options::NDOTS`.
const NDOTS: &str = "^0*([0-9]|1[0-5])$";
/// `admit::rollout`: a share of less than everything.
const SOME_SHARE: &str = "^0*[0-9]{1,2} *%?$";

/// A string literal: JSON's escapes are CEL's too.
fn text(plain: &str) -> String {
    serde_json::Value::from(plain).to_string()
}

fn texts_of<T: ToString>(all: &[T]) -> String {
    format!("[{}]", all.iter().map(|one| text(&one.to_string())).collect::<Vec<_>>().join(", "))
}

/// The value of a label or annotation, or nothing.
fn value(holder: &str, kind: &str, key: &str) -> String {
    format!("{holder}.metadata.?{kind}[?{}].orValue('')", text(key))
}

/// `admit::opted_in`. Conditions of a policy do not see the namespace; variables do.
fn opted_in() -> String {
    let label = |key: &str| value("namespaceObject", "labels", key);
    let (inject, alias) = (label(keys::INJECT), label(keys::INJECT_ALIAS));
    let annotation = value("namespaceObject", "annotations", keys::INJECT);
    format!(
        "({inject} == 'enabled' || {alias} == 'enabled') && !('disabled' in [{inject}, {alias}, {annotation}])"
    )
}

/// Which pods are changed: all must hold.
pub(super) fn conditions(policy: &Policy) -> Vec<Named> {
    let annotation = |key: &str| value("object", "annotations", key);
    let windows = ["kubernetes.io/os", "beta.kubernetes.io/os"].map(|key| must_run_on(key, Some("windows")));
    let mut conditions = vec![
        ("pod-not-opted-out", format!("{} != 'disabled'", annotation(keys::INJECT))),
        (
            "no-mirror-of-a-static-pod",
            "!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))".to_owned(),
        ),
        (
            "not-for-windows",
            format!("!(object.spec.?os.name.orValue('') == 'windows' || {})", windows.join(" || ")),
        ),
        // Also true of no pod that was changed before: those have the policy None.
        (
            "asks-the-cluster-dns",
            format!(
                "object.spec.?dnsPolicy.orValue('ClusterFirst') == ({HOST_NETWORK} ? 'ClusterFirstWithHostNet' : 'ClusterFirst')"
            ),
        ),
    ];
    if !policy.leave_alone.is_empty() {
        let marks: Vec<_> = policy.leave_alone.iter().map(has_mark).collect();
        conditions.push(("runs-where-a-resolver-is", format!("!({})", marks.join(" || "))));
    }
    conditions
}

const HOST_NETWORK: &str = "object.spec.?hostNetwork.orValue(false)";

/// `Pod::must_run_on`.
fn must_run_on(key: &str, wanted: Option<&str>) -> String {
    let key = text(key);
    let (selected, values, exists) = match wanted {
        Some(wanted) => {
            let wanted = text(wanted);
            (format!(".orValue('') == {wanted}"), format!("e.values.all(v, v == {wanted})"), "false")
        }
        None => (".hasValue()".to_owned(), "true".to_owned(), "e.operator == 'Exists'"),
    };
    let terms = "object.spec.?affinity.?nodeAffinity.?requiredDuringSchedulingIgnoredDuringExecution.?nodeSelectorTerms.orValue([])";
    format!(
        "object.spec.?nodeSelector[?{key}]{selected} || ({terms}.size() > 0 && {terms}.all(t, t.?matchExpressions.orValue([]).exists(e, e.key == {key} && ({exists} || e.operator == 'In' && e.?values.orValue([]).size() > 0 && {values}))))"
    )
}

/// `PodSelector::matches`.
fn has_mark(selector: &PodSelector) -> String {
    let is = |found: String, wanted: Option<&str>| match wanted {
        Some(wanted) => format!("{found}.orValue('') == {}", text(wanted)),
        None => format!("{found}.hasValue()"),
    };
    match selector.mark() {
        Mark::Label(key, wanted) => is(format!("object.metadata.?labels[?{}]", text(key)), wanted),
        Mark::Annotation(key, wanted) => is(format!("object.metadata.?annotations[?{}]", text(key)), wanted),
        Mark::NodeSelector(key, wanted) => format!("({})", must_run_on(key, wanted)),
        Mark::Toleration(key, wanted) => {
            let wanted = wanted
                .map_or_else(String::new, |wanted| format!(" && t.?value.orValue('') == {}", text(wanted)));
            format!(
                "object.spec.?tolerations.orValue([]).exists(t, t.?key.orValue('') == {}{wanted})",
                text(key)
            )
        }
        Mark::Resource(key) => {
            let key = text(key);
            let asks = |list: &str| {
                format!(
                    "object.spec.?{list}.orValue([]).exists(c, {key} in c.?resources.?limits.orValue({{}}) || {key} in c.?resources.?requests.orValue({{}}))"
                )
            };
            format!("{} || {}", asks("containers"), asks("initContainers"))
        }
    }
}

/// What annotations say, as lists of words; the pod's in `p...`, the namespace's in `n...`.
pub(super) fn texts() -> Vec<Named> {
    let words = |holder: &str, key: &str| {
        let text = value(holder, "annotations", key);
        format!(
            "{text}.replace('\\n', ' ').replace('\\t', ' ').replace(',', ' ').split(' ').filter(w, w != '')"
        )
    };
    let trimmed = |holder: &str, key: &str| format!("{}.trim()", value(holder, "annotations", key));
    let (pod, namespace) = ("object", "namespaceObject");
    let flags = FLAGS.join("|");
    let option =
        format!("^({flags}|ndots:0*([0-9]|1[0-5])|timeout:0*([1-9]|[12][0-9]|30)|attempts:0*[1-5])$");
    let good_options =
        |words: &str| format!("{words}.size() > 0 && {words}.all(w, w.matches({}))", text(&option));
    let good_searches = |words: &str| {
        format!(
            "{words}.size() > 0 && {words}.all(w, w.matches({}) && w.size() <= {MAX_NAME_BYTES} + (w.endsWith('.') ? 1 : 0))",
            text(DOMAIN)
        )
    };
    // `is_usable`: CEL knows no word for "multicast" of every scope.
    let good_addresses = |words: &str| {
        format!(
            "{words}.size() in [1, 2] && {words}.all(w, isIP(w) && !ip(w).isUnspecified() && w != '255.255.255.255' && !(ip(w).family() == 4 ? cidr('224.0.0.0/4').containsIP(w) : cidr('ff00::/8').containsIP(w)))"
        )
    };
    let share = value(namespace, "annotations", keys::ROLLOUT);
    vec![
        ("optedIn", opted_in()),
        // A share of the workloads, which cannot be computed here.
        ("asksForShare", format!("{share}.trim().matches({})", text(SOME_SHARE))),
        ("pNdots", trimmed(pod, keys::NDOTS)),
        ("nNdots", trimmed(namespace, keys::NDOTS)),
        ("pNdotsGood", format!("variables.pNdots.matches({})", text(NDOTS))),
        ("nNdotsGood", format!("variables.nNdots.matches({})", text(NDOTS))),
        ("pFallback", trimmed(pod, keys::FALLBACK)),
        ("nFallback", trimmed(namespace, keys::FALLBACK)),
        ("pOptions", words(pod, keys::OPTIONS)),
        ("nOptions", words(namespace, keys::OPTIONS)),
        ("pOptionsGood", good_options("variables.pOptions")),
        ("nOptionsGood", good_options("variables.nOptions")),
        ("pSearches", words(pod, keys::SEARCHES)),
        ("nSearches", words(namespace, keys::SEARCHES)),
        ("pSearchesGood", good_searches("variables.pSearches")),
        ("nSearchesGood", good_searches("variables.nSearches")),
        ("pLocal", words(pod, keys::LOCAL_ADDRESS)),
        ("nLocal", words(namespace, keys::LOCAL_ADDRESS)),
        ("pLocalGood", good_addresses("variables.pLocal")),
        ("nLocalGood", good_addresses("variables.nLocal")),
    ]
}

/// `compose`: everything up to the three lists.
pub(super) fn variables(policy: &Policy, facts: &Facts, domain: &Domain) -> Vec<Named> {
    let mut variables = texts();
    variables.extend([
        ("local", local(policy)),
        ("fallback", fallback(policy, facts)),
        ("behind", behind(&facts.cluster_dns)),
        ("nameservers", nameservers(facts)),
        ("fitting", fitting(policy, facts, domain)),
        ("searches", format!(
            "lists.range(variables.fitting.size()).filter(i, variables.fitting.slice(0, i + 1).join(' ').size() <= {MAX_SEARCH_CHARACTERS}).map(i, variables.fitting[i])"
        )),
        ("wanted", wanted(policy)),
        ("options", "variables.wanted.map(o, o['name']).distinct().map(n, variables.wanted.filter(o, o['name'] == n)[variables.wanted.filter(o, o['name'] == n).size() - 1])".to_owned()),
    ]);
    variables
}

fn local(policy: &Policy) -> String {
    let own = policy.defaults.local_addresses.as_ref().unwrap_or(&policy.local_addresses);
    let plain = |words: &str| format!("{words}.map(w, string(ip(w)))");
    format!(
        "variables.pLocalGood ? {} : variables.nLocalGood ? {} : {}",
        plain("variables.pLocal"),
        plain("variables.nLocal"),
        texts_of(own)
    )
}

fn fallback(policy: &Policy, facts: &Facts) -> String {
    if facts.fail_open != FailOpen::Everywhere {
        return "true".to_owned();
    }
    format!("{HOST_NETWORK} || {} == 'cluster'", wished_fallback(policy))
}

const FALLBACKS: &str = "['cluster', 'auto', 'none']";

/// What the nearest level asks for.
fn wished_fallback(policy: &Policy) -> String {
    let own = policy.defaults.fallback.unwrap_or(Fallback::Cluster);
    format!(
        "([variables.pFallback, variables.nFallback].filter(f, f in {FALLBACKS}) + [{}])[0]",
        text(&own.to_string())
    )
}

/// The cluster's address behind the local one: of its family, where there is one.
fn behind(cluster: &[IpAddr]) -> String {
    let of = |is_wanted: fn(&IpAddr) -> bool| {
        let found = cluster.iter().find(|one| is_wanted(one)).or(cluster.first());
        text(&found.map(ToString::to_string).unwrap_or_default())
    };
    format!("ip(variables.local[0]).family() == 4 ? {} : {}", of(IpAddr::is_ipv4), of(IpAddr::is_ipv6))
}

fn nameservers(facts: &Facts) -> String {
    let all = format!(
        "([variables.local[0]] + (variables.fallback ? [variables.behind] : []) + object.spec.?dnsConfig.?nameservers.orValue([]) + variables.local.slice(1, variables.local.size()) + (variables.fallback ? {} : [])).distinct()",
        texts_of(&facts.cluster_dns)
    );
    first_of(&all, MAX_NAMESERVERS)
}

/// The first `most` of a list. The list is written twice, for there is no "at most" and no name for a value.
fn first_of(list: &str, most: usize) -> String {
    format!("[{list}].map(l, l.slice(0, l.size() < {most} ? l.size() : {most}))[0]")
}

fn fitting(policy: &Policy, facts: &Facts, domain: &Domain) -> String {
    let of_all = texts_of(facts.host_searches.as_deref().unwrap_or_default());
    let host = facts.pool_searches.iter().rev().fold(of_all, |others, pool| {
        format!("(({}) ? {} : {others})", has_mark(&pool.pods), texts_of(&pool.searches))
    });
    let plain = |words: &str| {
        format!("{words}.map(w, (w.endsWith('.') ? w.substring(0, w.size() - 1) : w).lowerAscii())")
    };
    let added = format!(
        "(variables.pSearchesGood ? {} : variables.nSearchesGood ? {} : {})",
        plain("variables.pSearches"),
        plain("variables.nSearches"),
        texts_of(policy.defaults.searches.as_deref().unwrap_or_default())
    );
    let all = format!(
        "([request.namespace + {}, {}, {}] + {host} + object.spec.?dnsConfig.?searches.orValue([]) + {added}).distinct().filter(s, s.size() <= {MAX_NAME_BYTES})",
        text(&format!(".svc.{domain}")),
        text(&format!("svc.{domain}")),
        text(domain.as_str()),
    );
    first_of(&all, MAX_SEARCHES)
}

/// `compose::options`: every wish in its order; of one name the last counts.
fn wanted(policy: &Policy) -> String {
    let literal = |option: &DnsOption| match &option.value {
        Some(value) => format!("{{'name': {}, 'value': {}}}", text(&option.name), text(value)),
        None => format!("{{'name': {}}}", text(&option.name)),
    };
    let own = [DnsOption::ndots(DEFAULT_NDOTS)].into_iter().chain(policy.defaults.options.clone());
    let own: Vec<_> =
        own.chain(policy.defaults.ndots.map(DnsOption::ndots)).map(|one| literal(&one)).collect();
    let level = |level: &str| {
        format!(
            "(variables.{level}OptionsGood ? variables.{level}Options.map(w, w.contains(':') ? {{'name': w.split(':')[0], 'value': string(int(w.split(':')[1]))}} : {{'name': w}}) : []) + (variables.{level}NdotsGood ? [{{'name': 'ndots', 'value': string(int(variables.{level}Ndots))}}] : [])"
        )
    };
    format!(
        "[{}] + {} + {} + object.spec.?dnsConfig.?options.orValue([]).map(o, {{'name': o.?name.orValue(''), ?'value': o.?value}})",
        own.join(", "),
        level("n"),
        level("p")
    )
}

/// A hash of the settings.
pub(super) fn revision(variables: &[Named]) -> String {
    stable_hash(variables.iter().flat_map(|(name, expression)| name.bytes().chain(expression.bytes())))
}

/// `admit::patch`: parents first, and `add` also replaces.
pub(super) fn patch(revision: &str) -> String {
    let add = |path: &str, value: &str| format!("JSONPatch{{op: 'add', path: '{path}', value: {value}}}");
    let escaped = |key: &str| format!("/metadata/annotations/{}", key.replace('~', "~0").replace('/', "~1"));
    let changes = [
        add(&escaped(keys::STATUS), "'injected'"),
        add(&escaped(keys::REVISION), &text(revision)),
        add("/spec/dnsConfig/nameservers", "variables.nameservers"),
        add("/spec/dnsConfig/searches", "variables.searches"),
        add("/spec/dnsConfig/options", "variables.options"),
        add("/spec/dnsPolicy", "'None'"),
    ];
    format!(
        "!variables.optedIn || variables.asksForShare ? [] : (has(object.metadata.annotations) ? [] : [{}]) + (has(object.spec.dnsConfig) ? [] : [{}]) + [{}]",
        add("/metadata/annotations", "{}"),
        add("/spec/dnsConfig", "Object.spec.dnsConfig{}"),
        changes.join(", ")
    )
}

/// What a warning of the policy is made of.
pub(super) struct Check {
    /// What must hold.
    pub(super) holds: String,
    /// The words where it does not.
    pub(super) message: String,
    /// An expression for words of this very pod; where it cannot be computed, the others are said.
    pub(super) own_message: Option<String>,
}

impl Check {
    fn new(holds: String, message: String) -> Self {
        Self { holds, message, own_message: None }
    }
}

/// What is said of annotations that count for nothing.
pub(super) fn warnings(policy: &Policy, facts: &Facts) -> Vec<Check> {
    let mut warnings = vec![Check::new(
        "!variables.optedIn || !variables.asksForShare".to_owned(),
        format!(
            "nodestub: {} on the namespace is not for mode policy: the pod is left as it is; use the webhook",
            keys::ROLLOUT
        ),
    )];
    warnings.extend([("p", "pod"), ("n", "namespace")].map(|(level, place)| unknown(level, place)));
    for (place, holder, level) in [("pod", "object", "p"), ("namespace", "namespaceObject", "n")] {
        let mut check = |key: &str, good: String, allowed: &str| {
            let is_set = format!("{} != ''", value(holder, "annotations", key));
            let message = format!("nodestub: {key} on the {place} is not used; allowed: {allowed}");
            warnings.push(Check::new(format!("!variables.optedIn || !({is_set}) || {good}"), message));
        };
        check(keys::NDOTS, format!("variables.{level}NdotsGood"), "0 to 15");
        check(keys::OPTIONS, format!("variables.{level}OptionsGood"), crate::admit::options::ALLOWED_OPTIONS);
        check(keys::SEARCHES, format!("variables.{level}SearchesGood"), "domain names, separated by commas");
        check(
            keys::LOCAL_ADDRESS,
            format!("variables.{level}LocalGood"),
            "one or two IP addresses, separated by a comma",
        );
        if facts.fail_open == FailOpen::Everywhere {
            let good = format!("variables.{level}Fallback in {FALLBACKS}");
            check(keys::FALLBACK, good, crate::admit::policy::ALLOWED_FALLBACKS);
        } else {
            // A namespace is not believed either, but nobody asks it where the pod wants the cluster DNS.
            let good = format!("'cluster' in [variables.pFallback, variables.{level}Fallback]");
            check(keys::FALLBACK, good, "cluster; a policy does not hear whether nodes fail open");
        }
    }
    if facts.fail_open == FailOpen::Everywhere {
        let injected = value("object", "annotations", keys::STATUS);
        warnings.push(Check::new(
            format!("{injected} != 'injected' || !{HOST_NETWORK} || {} != 'none'", wished_fallback(policy)),
            format!("nodestub: {}", Warning::FallbackKeptForHostNetwork),
        ));
    }
    warnings
}

/// Our annotations that do not exist, in order: `overrides::read`'s last arm. The policy that warns has them besides
/// [`texts`]; what is injected does not depend on them.
pub(super) fn unknown_annotations() -> Vec<Named> {
    let unknown = |holder: &str, known: &[&str]| {
        format!(
            "{holder}.metadata.?annotations.orValue({{}}).filter(k, k.startsWith({}) && !(k in {})).sort()",
            text(keys::PREFIX),
            texts_of(known)
        )
    };
    let of_namespace: Vec<_> = keys::ANNOTATIONS.into_iter().chain([keys::ROLLOUT]).collect();
    vec![
        ("pUnknown", unknown("object", &keys::ANNOTATIONS)),
        ("nUnknown", unknown("namespaceObject", &of_namespace)),
    ]
}

/// One warning for all of a level, as long as one may be. A pod with thousands of them is admitted as well: whatever fails here,
/// the binding only warns, and what costs too much is passed over (`failurePolicy: Ignore`).
fn unknown(level: &str, place: &str) -> Check {
    let all = format!("variables.{level}Unknown");
    let words = format!(
        "{} + {all}.map(k, '\"' + k + '\"').join(', ') + {}",
        text("nodestub: annotation "),
        text(&format!(" on the {place} is not known to this version"))
    );
    let cut = MAX_WARNING_BYTES - CUT.len();
    let short =
        format!("[{words}].map(t, t.size() > {MAX_WARNING_BYTES} ? t.substring(0, {cut}) + '{CUT}' : t)[0]");
    Check {
        holds: format!("!variables.optedIn || {all}.size() == 0"),
        message: format!(
            "nodestub: an annotation {}... on the {place} is not known to this version",
            keys::PREFIX
        ),
        own_message: Some(short),
    }
}
