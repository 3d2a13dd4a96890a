//! What is filled into words before they are read: `__PILLAR__*`, `__PROMETHEUS__ENDPOINT__` and environment variables.
//!
//! NodeLocal's installer and `node-cache` replace them in the text of the file
//! (<https://github.com/kubernetes-sigs/node-local-dns>, `cmd/node-cache/app/configmap.go`). Here it happens word by word, so that
//! a message still points at what the user wrote. A list becomes several words:
//!
//! | placeholder | stands for |
//! | --- | --- |
//! | `__PILLAR__DNS__DOMAIN__` | the cluster domain |
//! | `__PILLAR__LOCAL__DNS__` | all local addresses |
//! | `__PILLAR__DNS__SERVER__` | nothing: `node-cache` blanks it, the address is among the local ones |
//! | `__PILLAR__CLUSTER__DNS__` | the addresses of the cluster DNS |
//! | `__PILLAR__UPSTREAM__SERVERS__` | the given servers, else `/etc/resolv.conf` |
//! | `__PROMETHEUS__ENDPOINT__` | the given address for `prometheus` |
//!
//! Where a placeholder is only part of a word, as in NodeLocal's `health __PILLAR__LOCAL__DNS__:8080`, the first
//! value is taken: `node-cache` would break that line with a second address.
//!
//! After that `{%NAME%}` and then `{$NAME}` are replaced, as CoreDNS does it: anywhere in a word, quoted too,
//! never splitting it, again in what came out. A variable that is not set is nothing in CoreDNS; here it is that,
//! and a warning.

use std::collections::HashSet;

use crate::context::Context;
use crate::lexer::{Kind, Token};
use crate::report::{Diagnostic, Span, shown};

/// Words with this in them are placeholders, or mistakes.
const MARK: &str = "__PILLAR__";
/// A cluster DNS that is not known yet.
pub(crate) const CLUSTER_DNS: &str = "__PILLAR__CLUSTER__DNS__";
/// Most replacements of variables in one word; a variable that holds its own name never ends.
const MAX_REPLACEMENTS: usize = 100;
/// Longest word after replacements, in bytes.
const MAX_WORD_BYTES: usize = 64 * 1024;

/// Fills in a file's words.
pub(crate) fn expand(context: &mut Context<'_>, tokens: Vec<Token>) -> Vec<Token> {
    let mut expanded = Vec::with_capacity(tokens.len());
    // A placeholder that stands for nothing hands its place at the start of the line to the next word.
    let mut line_started = false;
    for mut token in tokens {
        token.first_on_line |= std::mem::take(&mut line_started);
        if start(&token.text).is_some() {
            if !token.quoted
                && let Some((name, "")) = placeholder(&token.text)
            {
                let values = values(context, name, token.span);
                line_started = values.is_empty() && token.first_on_line;
                for (index, text) in values.into_iter().enumerate() {
                    let first_on_line = token.first_on_line && index == 0;
                    expanded.push(Token { text, first_on_line, ..token.clone() });
                }
                continue;
            }
            token.text = fill(context, &token);
        }
        if token.kind == Kind::Word {
            token.text = replace_variables(context, &token);
        }
        expanded.push(token);
    }
    expanded
}

/// Where the first placeholder in a text begins.
fn start(text: &str) -> Option<usize> {
    let prometheus = text.find(Placeholder::Prometheus.text());
    text.find(MARK).into_iter().chain(prometheus).min()
}

/// A known placeholder at the start of a text, and what follows it.
fn placeholder(text: &str) -> Option<(Placeholder, &str)> {
    Placeholder::ALL.into_iter().find_map(|name| Some((name, text.strip_prefix(name.text())?)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Placeholder {
    Domain,
    LocalAddresses,
    Server,
    ClusterDns,
    UpstreamServers,
    Prometheus,
}

impl Placeholder {
    const ALL: [Self; 6] = [
        Self::Domain,
        Self::LocalAddresses,
        Self::Server,
        Self::ClusterDns,
        Self::UpstreamServers,
        Self::Prometheus,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Domain => "__PILLAR__DNS__DOMAIN__",
            Self::LocalAddresses => "__PILLAR__LOCAL__DNS__",
            Self::Server => "__PILLAR__DNS__SERVER__",
            Self::ClusterDns => "__PILLAR__CLUSTER__DNS__",
            Self::UpstreamServers => "__PILLAR__UPSTREAM__SERVERS__",
            Self::Prometheus => "__PROMETHEUS__ENDPOINT__",
        }
    }
}

fn values(context: &mut Context<'_>, name: Placeholder, span: Span) -> Vec<String> {
    let options = context.options;
    let addresses = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (values, help, stand_in) = match name {
        Placeholder::Server => return Vec::new(),
        Placeholder::Prometheus => return vec![options.prometheus_endpoint.clone()],
        Placeholder::UpstreamServers => match &options.upstream_servers {
            Some(servers) => {
                (servers.iter().map(ToString::to_string).collect(), "name a server", "192.0.2.53")
            }
            None => return vec!["/etc/resolv.conf".to_owned()],
        },
        Placeholder::Domain => (
            options.cluster_domain.iter().cloned().collect(),
            "give the cluster's domain: `--cluster-domain cluster.local`",
            "cluster.local",
        ),
        Placeholder::LocalAddresses => (
            addresses(&options.local_addresses),
            "give the addresses to listen on: `-localip 169.254.20.10`",
            "192.0.2.1",
        ),
        // Left as it stands: `forward` knows it, and whatever else stands there is an error.
        Placeholder::ClusterDns if options.cluster_dns.is_empty() && options.serve_without_cluster_dns => {
            return vec![CLUSTER_DNS.to_owned()];
        }
        Placeholder::ClusterDns => (
            addresses(&options.cluster_dns),
            "give the Service in front of the cluster DNS: `-upstreamsvc kube-dns-upstream`; its address is read from the \
             variable KUBE_DNS_UPSTREAM_SERVICE_HOST, which a pod has only when the Service is older and in its namespace",
            "192.0.2.53",
        ),
    };
    if !values.is_empty() {
        return values;
    }
    let text = name.text();
    if context.missing_placeholders.insert(name) {
        context.report(
            Diagnostic::error(span, format!("nothing is known to put in place of `{text}`"))
                .label("needed here")
                .help(help),
        );
    }
    // Said once; a stand-in keeps the rest of the file readable, and the result is thrown away.
    vec![stand_in.to_owned()]
}

/// Replaces every placeholder inside a word.
fn fill(context: &mut Context<'_>, token: &Token) -> String {
    let mut filled = String::new();
    let mut rest = token.text.as_str();
    while let Some(at) = start(rest) {
        let (before, from) = rest.split_at(at);
        filled.push_str(before);
        if let Some((name, after)) = placeholder(from) {
            let values = values(context, name, token.span);
            if token.quoted {
                filled.push_str(&values.join(" "));
            } else if let Some(first) = values.first() {
                // ADDRESS:PORT needs brackets around IPv6.
                let in_brackets = after.starts_with(':') && first.parse::<std::net::Ipv6Addr>().is_ok();
                filled.push_str(&if in_brackets { format!("[{first}]") } else { first.clone() });
            }
            rest = after;
        } else {
            let length = from.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(from.len());
            let (unknown, after) = from.split_at(length);
            let known: Vec<_> = Placeholder::ALL.iter().map(|name| format!("`{}`", name.text())).collect();
            context.report(
                Diagnostic::error(token.span, format!("unknown placeholder {}", shown(unknown)))
                    .help(format!("these are known: {}", known.join(", "))),
            );
            filled.push_str(unknown);
            rest = after;
        }
    }
    filled.push_str(rest);
    filled
}

fn replace_variables(context: &mut Context<'_>, token: &Token) -> String {
    let mut text = token.text.clone();
    let mut left = MAX_REPLACEMENTS;
    let mut unset = HashSet::new();
    for (open, close) in [("{%", "%}"), ("{$", "}")] {
        while let Some(start) = text.find(open) {
            let name_start = start + open.len();
            let Some(name) =
                text.get(name_start..).and_then(|rest| rest.split_once(close)).map(|(name, _)| name)
            else {
                break;
            };
            if name.is_empty() {
                break;
            }
            let value = context.environment.variable(name);
            if value.is_none() && unset.insert(name.to_owned()) {
                context.report(
                    Diagnostic::warning(
                        token.span,
                        format!("the environment variable {} is not set", shown(name)),
                    )
                    .label("replaced by nothing, as CoreDNS does"),
                );
            }
            let value = value.unwrap_or_default();
            if left == 0 || text.len() + value.len() > MAX_WORD_BYTES {
                context.report(
                    Diagnostic::error(
                        token.span,
                        format!("the environment variable {} never ends", shown(name)),
                    )
                    .help("take its own name, or a very long text, out of its value"),
                );
                return token.text.clone();
            }
            left -= 1;
            text.replace_range(start..name_start + name.len() + close.len(), &value);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::tests::Memory;
    use crate::lexer::lex;
    use crate::{Options, report::Severity};

    fn node_local() -> Options {
        Options {
            cluster_domain: Some("cluster.local".into()),
            local_addresses: vec!["169.254.20.10".parse().unwrap(), "fd00::10".parse().unwrap()],
            cluster_dns: vec!["10.96.0.11".parse().unwrap()],
            ..Options::default()
        }
    }

    /// The words after expansion, with a `|` before each that starts a line, and the messages.
    fn expanded(text: &str, options: &Options, memory: &Memory) -> (Vec<String>, Vec<Diagnostic>) {
        let mut context = Context::new(options, memory);
        let tokens = expand(&mut context, lex(0, text).0);
        let words =
            tokens.iter().map(|t| format!("{}{}", if t.first_on_line { "|" } else { "" }, t.text)).collect();
        (words, context.diagnostics)
    }

    #[test]
    fn fills_in_what_node_local_leaves_open() {
        let text = "__PILLAR__DNS__DOMAIN__:53 {\nbind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__\n\
                    forward . __PILLAR__CLUSTER__DNS__\nforward . __PILLAR__UPSTREAM__SERVERS__\n}";
        let (words, diagnostics) = expanded(text, &node_local(), &Memory::default());
        assert_eq!(
            words,
            [
                "|cluster.local:53",
                "{",
                "|bind",
                "169.254.20.10",
                "fd00::10",
                "|forward",
                ".",
                "10.96.0.11",
                "|forward",
                ".",
                "/etc/resolv.conf",
                "|}"
            ]
        );
        assert!(diagnostics.is_empty());
    }

    #[test]
    fn takes_the_first_address_inside_a_word_and_brackets_ipv6() {
        let mut options = node_local();
        let text = "__PILLAR__LOCAL__DNS__:8080";
        assert_eq!(expanded(text, &options, &Memory::default()).0, ["|169.254.20.10:8080"]);
        options.local_addresses.reverse();
        assert_eq!(expanded(text, &options, &Memory::default()).0, ["|[fd00::10]:8080"]);
    }

    #[test]
    fn fills_in_the_address_for_prometheus_of_the_successors_template() {
        let text = "prometheus __PROMETHEUS__ENDPOINT__ x__PROMETHEUS__ENDPOINT____PILLAR__LOCAL__DNS__";
        let mut options = node_local();
        assert_eq!(
            expanded(text, &options, &Memory::default()).0,
            ["|prometheus", ":9253", "x:9253169.254.20.10"]
        );
        options.prometheus_endpoint = "127.0.0.1:9254".into();
        assert_eq!(expanded(text, &options, &Memory::default()).0[1], "127.0.0.1:9254");
    }

    #[test]
    fn says_once_which_option_is_missing() {
        let text = "__PILLAR__DNS__DOMAIN__ __PILLAR__CLUSTER__DNS__ __PILLAR__CLUSTER__DNS__";
        let (_, diagnostics) = expanded(text, &Options::default(), &Memory::default());
        let helps: Vec<_> = diagnostics.iter().filter_map(Diagnostic::help_text).collect();
        assert_eq!(diagnostics.len(), 2);
        assert!(helps[0].contains("--cluster-domain") && helps[1].contains("-upstreamsvc"), "{helps:?}");
    }

    #[test]
    fn rejects_an_unknown_placeholder_and_an_empty_list_of_servers() {
        let (_, diagnostics) = expanded("a:__PILLAR__PORT__", &node_local(), &Memory::default());
        assert_eq!(diagnostics[0].message(), "unknown placeholder `__PILLAR__PORT__`");
        let options = Options { upstream_servers: Some(Vec::new()), ..node_local() };
        let (_, diagnostics) = expanded("__PILLAR__UPSTREAM__SERVERS__", &options, &Memory::default());
        assert_eq!(diagnostics.len(), 1);
    }

    #[test]
    fn hands_the_start_of_a_line_on_when_a_placeholder_is_nothing() {
        let (words, _) = expanded("a\n__PILLAR__DNS__SERVER__ b", &node_local(), &Memory::default());
        assert_eq!(words, ["|a", "|b"]);
    }

    #[test]
    fn replaces_variables_as_coredns_does() {
        let memory = Memory::default()
            .with_variable("PORT", "8080")
            .with_variable("ADDRESS", "servername.com")
            .with_variable("FOOBAR", "foo bar")
            .with_variable("NESTED", "<{$PORT}>");
        for (text, expected) in [
            ("{$ADDRESS}", "servername.com"),
            ("pre{$ADDRESS}", "preservername.com"),
            ("{$ADDRESS}:{$PORT}", "servername.com:8080"),
            ("{%ADDRESS%}:{$PORT}", "servername.com:8080"),
            ("{$ADDRESS}:{%PORT%}", "servername.com:8080"),
            ("{%ADDRESS%}/{%FOOBAR%}", "servername.com/foo bar"),
            ("{%ADDRESS}", "{%ADDRESS}"),
            ("\"Test {$FOOBAR} test\"", "Test foo bar test"),
            ("\"{{ .Name }} {$FOOBAR}\"", "{{ .Name }} foo bar"),
            ("{$NESTED}", "<8080>"),
            ("{$}", "{$}"),
            ("{%%}", "{%%}"),
        ] {
            let (words, diagnostics) = expanded(text, &Options::default(), &memory);
            assert_eq!(words, [format!("|{expected}")], "{text}");
            assert!(diagnostics.is_empty(), "{text}: {diagnostics:?}");
        }
    }

    #[test]
    fn warns_of_a_variable_that_is_not_set() {
        let (words, diagnostics) = expanded(":{$PORT$}", &Options::default(), &Memory::default());
        assert_eq!(words, ["|:"]);
        assert_eq!(diagnostics[0].severity(), Severity::Warning);
    }

    #[test]
    fn rejects_a_variable_that_holds_its_own_name() {
        let memory = Memory::default().with_variable("A", "{$A}{$A}");
        let (_, diagnostics) = expanded("{$A}", &Options::default(), &memory);
        assert_eq!(diagnostics[0].severity(), Severity::Error);
    }
}
