//! Probes of an upstream that failed: `. IN NS`, or as `health_check` says, every so often, until anything comes back.
//!
//! Health is passive first: an upstream that answers is never probed (CoreDNS `plugin/forward/health.go`).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::upstream::Upstream;

/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts probing unless that is under way already. The probes end when the upstream answers, or is no longer used.
pub(super) fn start(upstream: &Arc<Upstream>) {
    if upstream.probing.swap(true, Relaxed) {
        return;
    }
    let interval = upstream.health_check;
    let upstream = Arc::downgrade(upstream);
    tokio::spawn(async move {
        loop {
            sleep(interval).await;
            let Some(upstream) = upstream.upgrade() else { return };
            let probe = timeout(PROBE_TIMEOUT, upstream.probe(&upstream.probe_ask));
            if matches!(probe.await, Ok(Ok(_))) {
                upstream.recovered();
                upstream.probing.store(false, Relaxed);
                return;
            }
            upstream.failed_probes.add(1);
        }
    });
}
