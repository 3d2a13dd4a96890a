//! What is served comes from here: the Corefile, or node-cache's template in its place, with what the flags, the
//! environment and kube-dns's ConfigMap say.
//!
//! A ConfigMap that does not read, or that the Corefile does not go together with, is refused, said and counted once;
//! what it said before stays in force, at the start nothing. The Corefile does not suffer for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nodestub_corefile::{Config, Loaded, Options, Report, load_changed};

use crate::args::{Placeholders, Serve};
use crate::kube_dns::{self, KubeDns};
use crate::node::SetupErrors;
use crate::surroundings::Known;

/// Read at the start, and at each reload.
#[derive(Debug)]
pub struct Sources<'a> {
    arguments: &'a Serve,
    folder: Option<PathBuf>,
    /// The last good one.
    kube_dns: KubeDns,
    errors: Arc<SetupErrors>,
    /// What was wrong with the ConfigMap when it was looked at last.
    said: Option<String>,
}

impl<'a> Sources<'a> {
    /// Nothing is read yet.
    pub fn new(arguments: &'a Serve, errors: Arc<SetupErrors>) -> Self {
        let folder = arguments.placeholders.kube_dns_folder();
        Self { arguments, folder, kube_dns: KubeDns::default(), errors, said: None }
    }

    /// Reads everything as it is now, with what is known of the cluster.
    ///
    /// # Errors
    /// What is wrong with the Corefile.
    pub fn read(&mut self, known: &Known) -> Result<Config, Box<Report>> {
        let loaded = self.load(known).map_err(Box::new)?;
        if !loaded.warnings.is_empty() {
            tracing::warn!("{}", loaded.warnings);
        }
        Ok(loaded.config)
    }

    fn load(&mut self, known: &Known) -> Result<Loaded, Report> {
        let file = self.arguments.corefile();
        let options = Options {
            cluster_domain: known.cluster_domain.clone(),
            serve_without_cluster_dns: true,
            ..self.arguments.options(|name| known.variable(name))
        };
        let wrong = match self.folder.as_deref().map(kube_dns::read) {
            None => return load(file, options, &KubeDns::default()),
            Some(Ok(fresh)) if fresh == self.kube_dns => {
                self.said = None;
                return load(file, options, &fresh);
            }
            Some(Ok(fresh)) => match load(file, options.clone(), &fresh) {
                Ok(loaded) => {
                    tracing::info!(
                        stub_domains = fresh.stub_domains(),
                        upstream_nameservers = fresh.upstream_nameservers(),
                        "the ConfigMap of kube-dns is in force"
                    );
                    if std::fs::read_to_string(file).is_ok_and(|text| fresh.leaves_protocol(&text)) {
                        tracing::warn!(
                            "upstreamNameservers are asked as the Corefile says: its block for them is not the one \
                             that node-cache knows, and changes to UDP"
                        );
                    }
                    (self.kube_dns, self.said) = (fresh, None);
                    return Ok(loaded);
                }
                Err(report) => report.to_string(),
            },
            Some(Err(error)) => error.to_string(),
        };
        // If that does not go either, the Corefile is wrong by itself, and the ConfigMap is not to blame.
        let loaded = load(file, options, &self.kube_dns)?;
        if self.said.as_ref() != Some(&wrong) {
            self.errors.configmap.add(1);
            tracing::error!(
                "the ConfigMap of kube-dns is refused; what it said before stays in force. {wrong}"
            );
            self.said = Some(wrong);
        }
        Ok(loaded)
    }
}

/// Reads everything once and says what is wrong with it.
///
/// # Errors
/// All of it.
pub fn check(file: &Path, placeholders: &Placeholders) -> Result<Loaded, String> {
    let kube_dns = placeholders.kube_dns_folder().map(|folder| kube_dns::read(&folder)).transpose();
    let kube_dns = kube_dns.map_err(|error| error.to_string())?.unwrap_or_default();
    let options = placeholders.options(|name| std::env::var(name).ok());
    load(file, options, &kube_dns).map_err(|report| show(&report))
}

/// In colours, where somebody reads it.
pub fn show(report: &Report) -> String {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() { report.coloured() } else { report.to_string() }
}

fn load(file: &Path, mut options: Options, kube_dns: &KubeDns) -> Result<Loaded, Report> {
    if !kube_dns.servers().is_empty() {
        options.upstream_servers = Some(kube_dns.servers().to_vec());
    }
    load_changed(file, &options, |text| kube_dns.apply(&text, &options.local_addresses, options.default_port))
}
