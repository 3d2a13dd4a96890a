//! Where certificates come from: one setting, the mode, and what goes with it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nodestub_certs::issue::ServingNames;
use nodestub_certs::machine::Plan;

/// The API servers have this long to act on a new caBundle, at most.
const MAX_GRACE: Duration = Duration::from_secs(60);
/// With short lives the grace is this part of the leaf's.
const GRACE_PART: u32 = 10;

/// Who makes the certificate, and who tells the API server to trust it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The webhook does both, and renews by itself.
    #[value(name = "self")]
    Own,
    /// cert-manager fills the Secret, and its cainjector the caBundle.
    CertManager,
    /// You do both, by a Secret or a folder.
    Provided,
}

/// Flags about certificates.
#[derive(Debug, Args)]
pub struct CertificateArgs {
    /// Who makes the certificate and fills caBundle: `self` (the webhook), `cert-manager`, or `provided` (you)
    ///
    /// Unset, it is `provided` with --certificates, else `self`.
    #[arg(long, env = "NODESTUB_CERTIFICATES_MODE", value_enum)]
    certificates_mode: Option<Mode>,
    /// Folder with tls.crt, tls.key and ca.crt, for `provided`; new files are served without a restart
    #[arg(long, env = "NODESTUB_CERTIFICATES", value_name = "DIR")]
    certificates: Option<PathBuf>,
    /// Milliseconds between two looks at that folder, which is watched as well
    #[arg(long, env = "NODESTUB_CERTIFICATES_POLL_MILLISECONDS", value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    certificates_poll_milliseconds: u64,
    /// Secret with the certificate, in the webhook's own namespace
    #[arg(
        long,
        env = "NODESTUB_CERTIFICATES_SECRET",
        value_name = "NAME",
        default_value = "nodestub-webhook-certificates"
    )]
    certificates_secret: String,
    /// The MutatingWebhookConfiguration whose caBundle must trust us
    #[arg(long, env = "NODESTUB_REGISTRATION", value_name = "NAME", default_value = "nodestub")]
    registration: String,
    /// The Service that the API server calls, in the webhook's own namespace
    #[arg(long, env = "NODESTUB_SERVICE", value_name = "NAME", default_value = "nodestub-webhook")]
    service: String,
    /// With `self`: an IP address that certificates are good for as well (repeatable)
    #[arg(long, env = "NODESTUB_CERTIFICATE_IP", value_name = "IP", value_delimiter = ',')]
    certificate_ip: Vec<IpAddr>,
    /// With `self`: a DNS name that certificates are good for as well (repeatable)
    #[arg(long, env = "NODESTUB_CERTIFICATE_DNS", value_name = "NAME", value_delimiter = ',')]
    certificate_dns: Vec<String>,
    /// With `self`: seconds that a serving certificate lives; it is renewed after two thirds
    #[arg(long, env = "NODESTUB_CERTIFICATE_SECONDS", value_name = "N", default_value_t = 30 * 86_400,
          value_parser = clap::value_parser!(u64).range(6..=315_360_000))]
    certificate_seconds: u64,
    /// With `self`: seconds that a CA lives; it is renewed after two thirds
    #[arg(long, env = "NODESTUB_CA_SECONDS", value_name = "N", default_value_t = 365 * 86_400,
          value_parser = clap::value_parser!(u64).range(12..=3_153_600_000))]
    ca_seconds: u64,
    /// For tests: this process takes its own clock for so many milliseconds ahead of what it is
    #[arg(
        long,
        env = "NODESTUB_CLOCK_AHEAD_MILLISECONDS",
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true,
        hide = true
    )]
    clock_ahead_milliseconds: i64,
}

/// Where the certificate lies.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a folder, looked at every so often.
    Folder(PathBuf, Duration),
    /// In a Secret.
    Secret(SecretSettings),
}

/// What is done about the Secret.
#[derive(Debug, Clone)]
pub struct SecretSettings {
    /// Who fills it.
    pub mode: Mode,
    /// Its name, in the namespace of `names`; also the Lease's.
    pub secret: String,
    /// The name of the MutatingWebhookConfiguration.
    pub registration: String,
    /// What the certificate must be good for.
    pub names: ServingNames,
    /// How long things live.
    pub plan: Plan,
    /// What is added to this process' own clock, in milliseconds.
    pub clock_ahead: i64,
}

/// Why the flags make no sense together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceError {
    /// A folder is of use in mode `provided` only.
    FolderInMode,
    /// A CA that ends before its leaves.
    ShortAuthority,
    /// A Secret cannot be read by this build.
    NoClient,
    /// A name is no DNS name; which, and why.
    Name(String),
}

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FolderInMode => f.write_str(
                "--certificates is a folder that you fill: leave it out, or choose --certificates-mode=provided",
            ),
            Self::ShortAuthority => {
                f.write_str("--ca-seconds must be at least twice --certificate-seconds, or CAs end before their leaves")
            }
            Self::NoClient => f.write_str(
                "--certificates is missing: this build has no Kubernetes client (feature kube), so certificates come from a folder",
            ),
            Self::Name(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for SourceError {}

impl CertificateArgs {
    /// Sorts the flags. Where nothing is said, the webhook makes its certificates itself, if it `asks_cluster` anyway.
    ///
    /// # Errors
    /// When they contradict each other, or a folder is needed and missing.
    pub fn source(
        self,
        asks_cluster: bool,
        own_namespace: &str,
        cluster_domain: Option<String>,
    ) -> Result<Option<Source>, SourceError> {
        let mode = match (self.certificates_mode, &self.certificates) {
            (None | Some(Mode::Provided), Some(folder)) => {
                let poll = Duration::from_millis(self.certificates_poll_milliseconds);
                return Ok(Some(Source::Folder(folder.clone(), poll)));
            }
            (Some(_), Some(_)) => return Err(SourceError::FolderInMode),
            (None, None) if !asks_cluster => return Ok(None),
            (mode, None) => mode.unwrap_or(Mode::Own),
        };
        if cfg!(not(feature = "kube")) {
            return Err(SourceError::NoClient);
        }
        if self.ca_seconds / 2 < self.certificate_seconds {
            return Err(SourceError::ShortAuthority);
        }
        let names = ServingNames {
            service: self.service,
            namespace: own_namespace.to_owned(),
            cluster_domain,
            addresses: self.certificate_ip,
            extra: self.certificate_dns,
        };
        names.dns_names().map_err(|error| SourceError::Name(error.to_string()))?;
        let leaf = Duration::from_secs(self.certificate_seconds);
        let plan = Plan {
            leaf,
            authority: Duration::from_secs(self.ca_seconds),
            grace: (leaf / GRACE_PART).min(MAX_GRACE),
        };
        Ok(Some(Source::Secret(SecretSettings {
            mode,
            secret: self.certificates_secret,
            registration: self.registration,
            names,
            plan,
            clock_ahead: self.clock_ahead_milliseconds,
        })))
    }
}
