//! Chains of others that would drop our packets, over the daemon's life: looked for at the start, when the kernel tells
//! that rules changed, and at each look after the node; said once when found and once when gone.
//!
//! ```text
//!   Ears::changed, other rules of ours, or -syncinterval ─► dataplane::obstacles::look ─► what is new, what is gone ─► log
//!                                                                                    └─► Obstacles ─► /ready, /metrics
//! ```
//!
//! What is found is judged in `nodestub_dataplane::obstacles`. Nothing is changed here: rules of others are theirs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodestub_dataplane::Desired;
use nodestub_dataplane::obstacles::{Ears, Finding, Report, look};
use tokio::sync::watch;

/// Least time between two looks; and a look that takes long is followed by a pause of this many times as long.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_FACTOR: u32 = 20;

/// What the last look has found.
#[derive(Debug, Default)]
pub struct Obstacles(Mutex<Report>);

impl Obstacles {
    /// A copy.
    pub fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In words, for `/ready`: a line for each chain.
    pub fn details(&self) -> Vec<String> {
        self.report().findings.iter().map(ToString::to_string).collect()
    }

    fn set(&self, report: Report) -> Report {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), report)
    }
}

/// Looks now, and again at each change and each `interval`, with an eye to what the rules are for at that moment; not while
/// this process is not `in_charge`. Where no rules are ours, nothing is in the way of any. Ends never.
pub async fn keep_looking(
    mut rules: watch::Receiver<Option<Desired>>,
    interval: Duration,
    found: Arc<Obstacles>,
    in_charge: impl Fn() -> bool,
) {
    let mut ears = Ears::open().inspect_err(|error| {
        tracing::debug!(%error, "changes of others' rules are noticed by looking only");
    });
    let mut last_failure = String::new();
    loop {
        let begun = Instant::now();
        let desired = rules.borrow_and_update().clone();
        if in_charge()
            && let Some(desired) = desired
        {
            match look(&desired).await {
                Ok(report) => {
                    last_failure.clear();
                    say(&found.set(report.clone()), &report);
                }
                Err(error) => {
                    let failure = error.to_string();
                    if failure != last_failure {
                        tracing::warn!(%error, "cannot look whether rules of others would drop DNS");
                        last_failure = failure;
                    }
                }
            }
        }
        tokio::time::sleep(begun.elapsed().saturating_mul(PAUSE_FACTOR).max(PAUSE)).await;
        match &mut ears {
            Ok(open) => {
                let heard = tokio::select! {
                    heard = open.changed() => heard,
                    () = other_rules(&mut rules) => Ok(()),
                    () = tokio::time::sleep(interval) => Ok(()),
                };
                if let Err(error) = heard {
                    tracing::warn!(%error, "changes of others' rules are noticed by looking only from now on");
                    ears = Err(error);
                }
            }
            Err(_) => tokio::select! {
                () = other_rules(&mut rules) => {}
                () = tokio::time::sleep(interval) => {}
            },
        }
    }
}

/// Waits until our rules are for something else; for ever where nobody says it any more.
async fn other_rules(rules: &mut watch::Receiver<Option<Desired>>) {
    if rules.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Says what is new and what is gone.
fn say(before: &Report, now: &Report) {
    for finding in now.findings.iter().filter(|finding| !before.findings.contains(finding)) {
        let remedy = remedy(finding);
        if finding.is_certain {
            tracing::error!("{finding}. Rules of ours cannot undo that{remedy}");
        } else {
            tracing::warn!("{finding}. If it does, rules of ours cannot undo that{remedy}");
        }
    }
    let same = |one: &Finding, other: &Finding| one.table == other.table && one.chain == other.chain;
    for gone in before.findings.iter().filter(|old| !now.findings.iter().any(|new| same(old, new))) {
        tracing::info!(table = gone.table_name(), chain = gone.chain, "drops nothing of ours any more");
    }
    for unseen in now.unseen.iter().filter(|unseen| !before.unseen.contains(unseen)) {
        tracing::info!("not looked at, and so it may drop DNS unnoticed: {unseen}");
    }
}

fn remedy(finding: &Finding) -> String {
    if finding.lines.is_empty() {
        return "; accept these packets at the head of that chain".to_owned();
    }
    finding.lines.iter().fold("; run:".to_owned(), |text, line| format!("{text}\n    {line}"))
}

/// What `nodestub-resolver rules` says of them: comments for nft, so that the text stays one for `nft -f`.
pub struct Comments(
    /// What a look has found; or why there was none.
    pub Result<Report, nodestub_dataplane::obstacles::Error>,
);

impl fmt::Display for Comments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Err(error) => writeln!(f, "# Whether rules of others would drop DNS was not looked at: {error}"),
            Ok(report) => {
                for finding in &report.findings {
                    writeln!(f, "# {finding}{}", remedy(finding).replace('\n', "\n# "))?;
                }
                if report.more > 0 {
                    writeln!(f, "# and {} chains more", report.more)?;
                }
                for unseen in &report.unseen {
                    writeln!(f, "# Not looked at: {unseen}")?;
                }
                Ok(())
            }
        }
    }
}
