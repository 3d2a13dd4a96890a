//! `autopath [ZONE...] FILE|@kubernetes`: the search of a client's resolver, done here.

use std::path::Path;

use nodestub_wire::Name;

use super::{count, no_options, zone_list};
use crate::config::answering::{AutoPath, SearchPath};
use crate::context::{Context, Problem};
use crate::lexer::Token;
use crate::parser::Directive;
use crate::report::{Diagnostic, shown};
use crate::resolv_conf::search;

/// Most domains of a search list; kubelet gives a pod no more (`MaxDNSSearchPaths`).
const MAX_DOMAINS: usize = 32;

/// The search list of the node, which pods get behind the cluster's.
const NODE_FILE: &str = "/etc/resolv.conf";

pub(super) fn read(context: &mut Context<'_>, directive: &Directive, zones: &[Name]) -> Option<AutoPath> {
    no_options(context, directive);
    let form = "autopath [ZONE...] FILE, or autopath [ZONE...] @kubernetes";
    if !count(context, &directive.name, &directive.arguments, (1, usize::MAX), form) {
        return None;
    }
    let (source, zone_words) = directive.arguments.split_last()?;
    let mut own = zone_list(context, zone_words);
    if zone_words.is_empty() {
        own = zones.to_vec();
    }
    let path = match source.text.strip_prefix('@') {
        Some("kubernetes") => SearchPath::Kubernetes(node_domains(context, source)),
        Some(other) => {
            let problem = Problem::new(format!("no directive {} knows a search list", shown(other)));
            context.problem(source.span, problem.help("write `@kubernetes`, or the name of a file"));
            return None;
        }
        None => {
            let domains = domains(context, source, &source.text)?;
            SearchPath::List(domains)
        }
    };
    Some(AutoPath { zones: own, path })
}

/// The search list of a file; CoreDNS wants it to be there.
fn domains(context: &mut Context<'_>, source: &Token, file: &str) -> Option<Vec<Name>> {
    let read = context.environment.read(Path::new(file)).map_err(|error| {
        let problem = Problem::new(format!("the file {} cannot be read: {error}", shown(file)));
        problem.help("write the name of a file in the format of resolv.conf")
    });
    let text = context.accept(source.span, read)?;
    let mut domains = Vec::new();
    for word in search(&String::from_utf8_lossy(&text)) {
        let name = word.parse::<Name>().map_err(|error| {
            let problem =
                Problem::new(format!("{} in {} is no domain name: {error}", shown(&word), shown(file)));
            problem.help("mend its line `search`")
        });
        domains.extend(context.accept(source.span, name));
    }
    if domains.len() > MAX_DOMAINS {
        let problem = Problem::new(format!("{} has more than {MAX_DOMAINS} search domains", shown(file)));
        context.problem(source.span, problem.help("leave some out"));
    }
    Some(domains)
}

/// Those of the node. Without, pods have none from it either.
fn node_domains(context: &mut Context<'_>, source: &Token) -> Vec<Name> {
    if context.environment.read(Path::new(NODE_FILE)).is_err() {
        let warning = Diagnostic::warning(source.span, format!("{NODE_FILE} cannot be read"));
        context.report(warning.label("the node's own search domains are left out"));
        return Vec::new();
    }
    domains(context, source, NODE_FILE).unwrap_or_default()
}
