//! Corefile text to typed configuration; errors with file, line, caret and suggestion.
//!
//! In the order in which a text passes through:
//!
//! - `lexer`: text to words with their places.
//! - `placeholders`: `__PILLAR__*` and environment variables are filled into the words; places stay.
//! - `parser`: words to server blocks, directives and options; snippets and imports.
//! - `blocks`: zones, and what must hold between blocks; `directives`: each directive's arguments and options;
//!   [`gotemplate`]: the templates of `template`; `mnemonics`: names of types, classes and codes.
//! - [`config`]: the result, free of text. [`report`]: everything that is wrong, with its place.
//!
//! All of it is pure: files and variables come through [`Environment`], which [`load`] takes from the process. The
//! reference is CoreDNS 1.15.0 (coredns/caddy 1.1.4): grammar, names, defaults, bounds. A directive or an option
//! that it has and that is missing here is an error that says so.
//!
//! Deliberately not here: reading resolv.conf and hosts files for use, resolving devices, binding anything.
#![forbid(unsafe_code)]

#[cfg(test)]
mod any_text;
mod blocks;
pub mod config;
mod context;
mod directives;
pub mod environment;
pub mod expression;
pub mod gotemplate;
mod lexer;
mod mnemonics;
mod names;
mod parser;
mod placeholders;
pub mod report;
mod resolv_conf;
mod suggest;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

pub use config::Config;
use context::Context;
pub use environment::{Environment, System};
pub use mnemonics::{class_name, class_number, type_name, type_number};
pub use parser::{MAX_IMPORT_DEPTH, MAX_IMPORTS, MAX_WORDS};
use report::Diagnostic;
pub use report::Report;
pub use resolv_conf::nameservers;

/// The directives that are supported, in alphabetical order.
pub fn supported_directives() -> &'static [&'static str] {
    &directives::SUPPORTED
}

/// What a Corefile does not say itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The port of zones that name none (`-dns.port`). Default 53.
    pub default_port: u16,
    /// `--cluster-domain`, for `__PILLAR__DNS__DOMAIN__`. Default none: the placeholder is an error.
    pub cluster_domain: Option<String>,
    /// `-localip`, for `__PILLAR__LOCAL__DNS__`. Default none: the placeholder is an error.
    pub local_addresses: Vec<IpAddr>,
    /// The address of `-upstreamsvc`, for `__PILLAR__CLUSTER__DNS__`. Default none: the placeholder is an error.
    pub cluster_dns: Vec<IpAddr>,
    /// Where that address is not known, `forward` is read all the same, with nobody to ask. Default no.
    pub serve_without_cluster_dns: bool,
    /// For `__PILLAR__UPSTREAM__SERVERS__`. Default `None`: `/etc/resolv.conf`.
    pub upstream_servers: Option<Vec<SocketAddr>>,
    /// `-prometheus-listen-address`, for `__PROMETHEUS__ENDPOINT__`. Default `:9253`, as in node-local-dns.
    pub prometheus_endpoint: String,
}

/// A Corefile that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// What is probably not meant; no errors, and often empty.
    pub warnings: Report,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_port: 53,
            cluster_domain: None,
            local_addresses: Vec::new(),
            cluster_dns: Vec::new(),
            serve_without_cluster_dns: false,
            upstream_servers: None,
            prometheus_endpoint: ":9253".to_owned(),
        }
    }
}

/// Reads a Corefile and what it imports from the file system, with the process's environment variables.
///
/// # Errors
/// All that is wrong with it, the warnings included.
pub fn load(path: &Path, options: &Options) -> Result<Loaded, Report> {
    load_changed(path, options, |text| text)
}

/// As [`load`], of a text that is changed before it is read: what is added at its end leaves all places right.
///
/// # Errors
/// As there.
pub fn load_changed(
    path: &Path,
    options: &Options,
    change: impl FnOnce(String) -> String,
) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let text = System.read(path).map_err(|error| format!("cannot read {name}: {error}")).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|error| format!("{name} is not UTF-8 text: {}", error.utf8_error()))
    });
    match text {
        Ok(text) => parse(&name, &change(text), options, &System),
        Err(message) => {
            let diagnostic = Diagnostic::error_without_place(message).help("name the file with `-conf FILE`");
            Err(Report::new(Vec::new(), vec![diagnostic]))
        }
    }
}

/// Reads a Corefile's text. `file_name` stands in messages, and imports are relative to it.
///
/// # Errors
/// All that is wrong with it, the warnings included.
pub fn parse(
    file_name: &str,
    text: &str,
    options: &Options,
    environment: &dyn Environment,
) -> Result<Loaded, Report> {
    let mut context = Context::new(options, environment);
    let Ok(parsed) = parser::parse(&mut context, file_name, text, directives::is_supported) else {
        return Err(context.into_report());
    };
    let config = blocks::build(&mut context, &parsed);
    if context.has_errors() {
        return Err(context.into_report());
    }
    Ok(Loaded { config, warnings: context.into_report() })
}
