//! What `kubectl nodestub certs` says: what is kept, whom the API server trusts, who leads, and what comes next.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::Api;
use nodestub_certs::bundle::Root;
use nodestub_certs::kept::{BUNDLE, CERTIFICATE, KEY, Kept};
use nodestub_certs::machine::{Action, Plan, next};
use nodestub_certs::sight::Sight;
use nodestub_certs::{Material, Pair, trust};

use super::registration::{Registration, hooks};
use super::store::{Store, contents};
use crate::facts::cluster::{ClusterError, in_one_line};

/// Which certificates to show.
#[derive(Debug, Args)]
pub struct CertsArgs {
    /// The namespace that the webhook lives in
    #[arg(short = 'n', long, default_value = "nodestub-system")]
    namespace: String,
    /// The Secret with the certificate
    #[arg(long, value_name = "NAME", default_value = "nodestub-webhook-certificates")]
    secret: String,
    /// The MutatingWebhookConfiguration
    #[arg(long, value_name = "NAME", default_value = "nodestub")]
    registration: String,
    /// The cluster that this file names, instead of the usual one
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The cluster of this context
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// What is shown, and whether all is well.
#[derive(Debug)]
pub struct Shown {
    /// For people.
    pub text: String,
    /// The API server takes the certificate of the Secret.
    pub is_good: bool,
}

/// Looks and tells.
///
/// # Errors
/// When the Secret or the registration cannot be read.
pub async fn show(client: &Client, args: &CertsArgs) -> Result<Shown, ClusterError> {
    let failed = |what: &'static str| move |cause| ClusterError::Read { what, cause: Box::new(cause) };
    let store = Store::new(client, &args.namespace, &args.secret);
    let secret = store.read().await.map_err(failed("Secret"))?;
    let registered = Registration::new(client, &args.registration).read().await;
    let registered = registered.map_err(failed("MutatingWebhookConfiguration"))?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
    let lease = leases.get_opt(&args.secret).await.ok().flatten();

    let (now, at) = (SystemTime::now(), Instant::now());
    let mut sight = Sight::default();
    sight.see(registered.as_ref().map(hooks).unwrap_or_default(), at);
    let contents = contents(secret.as_ref());
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        out,
        "Secret {}/{}{}",
        args.namespace,
        args.secret,
        if secret.is_none() { ": not there" } else { "" }
    );

    let part = |name: &str| contents.get(name).cloned().unwrap_or_default();
    let material = Material { certificate: part(CERTIFICATE), key: part(KEY), authority: part(BUNDLE) };
    let (kept, problems) = Kept::read(&contents, &[], now);
    let pair = Pair::parse(&material, now);
    let is_own = kept.current.is_some() || kept.next.is_some();
    match &pair {
        Ok(pair) => {
            let _ = writeln!(out, "  certificate    {}", span(pair.leaf().not_after, now));
            let _ = writeln!(out, "    for          {}", pair.names().join(", "));
            let signer = kept.leaf.as_ref().and_then(|leaf| kept.roots().find(|root| root.id == leaf.issuer));
            if let Some(signer) = signer {
                let _ = writeln!(out, "    signed by    {}", signer.name);
            }
        }
        Err(error) => {
            let _ = writeln!(out, "  certificate    cannot be served: {}", in_one_line(error));
        }
    }
    for root in kept.roots() {
        let role = if kept.current.as_ref().is_some_and(|one| one.root().id == root.id) {
            "current CA"
        } else if kept.next.as_ref().is_some_and(|one| one.root().id == root.id) {
            "next CA"
        } else if is_own {
            "retired CA"
        } else {
            "CA"
        };
        let _ = writeln!(out, "  {role:<14} {}, {}", root.name, span(root.validity.not_after, now));
    }
    if is_own {
        for problem in &problems {
            let _ = writeln!(out, "  problem        {}", in_one_line(problem));
        }
    }
    let is_good = tell_registration(
        &mut out,
        &sight,
        pair.as_ref().ok(),
        registered.is_some(),
        &args.registration,
        now,
    );
    tell_rotation(&mut out, &kept, &sight, lease.as_ref(), is_own, at, now);
    Ok(Shown { text: out, is_good })
}

fn tell_registration(
    out: &mut String,
    sight: &Sight,
    pair: Option<&Pair>,
    is_there: bool,
    name: &str,
    now: SystemTime,
) -> bool {
    let _ = writeln!(out, "MutatingWebhookConfiguration {name}{}", if is_there { "" } else { ": not there" });
    let mut is_good = pair.is_some() && is_there;
    for hook in sight.hooks() {
        let roots: Vec<&Root> = hook.bundle.roots.iter().collect();
        let verdict = pair.map(|pair| trust::verify(pair.chain(), &roots, &hook.host, now));
        let said = match &verdict {
            Some(Ok(())) => "trusts the certificate".to_owned(),
            Some(Err(why)) => format!("does not trust the certificate: {why}"),
            None => "has no certificate to trust".to_owned(),
        };
        is_good &= matches!(verdict, Some(Ok(())));
        let _ = writeln!(out, "  {} ({}) {said}", hook.name, hook.host);
        let names: Vec<&str> = roots.iter().map(|root| root.name.as_str()).collect();
        let _ = writeln!(
            out,
            "    caBundle     {}",
            if names.is_empty() { "empty".to_owned() } else { names.join(", ") }
        );
        if let Some(problem) = &hook.bundle.problem {
            let _ = writeln!(out, "    problem      {problem}");
        }
    }
    is_good
}

/// Only of what the webhook does itself.
fn tell_rotation(
    out: &mut String,
    kept: &Kept,
    sight: &Sight,
    lease: Option<&Lease>,
    is_own: bool,
    at: Instant,
    now: SystemTime,
) {
    if !is_own {
        let _ = writeln!(out, "Rotation is not the webhook's: there is no CA of its own in the Secret.");
        return;
    }
    let holder =
        lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.clone()).filter(|name| !name.is_empty());
    let _ = writeln!(out, "Rotation by {}", holder.as_deref().unwrap_or("nobody at this moment"));
    // Nothing here depends on how long new ones will live; the grace is that of long-lived certificates.
    let plan = Plan { leaf: Duration::ZERO, authority: Duration::ZERO, grace: Duration::from_secs(60) };
    let registration = (!sight.hooks().is_empty()).then(|| sight.registration(false, at));
    let state = kept.state(registration);
    let what = match next(&state, &plan, now) {
        Action::Announce { .. } => "now: make a new CA".to_owned(),
        Action::Adopt(_) => {
            "now: keep the CAs that the API server trusts and that are not known here".to_owned()
        }
        Action::Publish(_) => "now: tell the API server which CAs to trust".to_owned(),
        Action::Promote => "now: the next CA takes over".to_owned(),
        Action::SignLeaf => "now: a new certificate".to_owned(),
        Action::Forget(_) => "now: drop retired CAs".to_owned(),
        Action::Wait(_) => {
            let leaf =
                state.leaf.map(|leaf| format!("a new certificate {}", when(leaf.certificate.renew(), now)));
            let ca = state.current.map(|ca| format!("a new CA {}", when(ca.renew(), now)));
            [leaf, ca].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    };
    let _ = writeln!(out, "  next           {what}");
}

fn span(ends: SystemTime, now: SystemTime) -> String {
    if ends <= now { format!("ended {}", when(ends, now)) } else { format!("ends {}", when(ends, now)) }
}

/// A moment, and how far it is.
fn when(moment: SystemTime, now: SystemTime) -> String {
    let text = Timestamp::try_from(moment).map(|moment| moment.to_string()).unwrap_or_default();
    match moment.duration_since(now) {
        Ok(left) => format!("{text} (in {})", rough(left)),
        Err(past) => format!("{text} ({} ago)", rough(past.duration())),
    }
}

fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
