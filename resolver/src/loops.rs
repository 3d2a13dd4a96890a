//! `loop`: finds upstreams that send our queries back to us.
//!
//! Each upstream of a block with `loop` is asked for a name of 128 random bits under the block's zone, type HINFO. If
//! a client then asks us for that very name, the upstream leads back here: it is marked, said, and not asked until a
//! later probe finds it in order. Unlike CoreDNS, the process never exits for it: one wrong upstream is no reason to
//! answer nothing, and a name that could be guessed would be a switch for anybody (CVE-2026-26018).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nodestub_wire::{Ask, CLASS_IN, Name, NameBuf, rtype};
use rand::Rng;
use tokio::time::{sleep, timeout};

use crate::forward::Upstream;
use crate::listen::Shared;

/// How long an upstream is waited for; at start it may come up after us.
const PATIENCE: Duration = Duration::from_secs(2);

/// Probes of one upstream at start until it answers once: half a minute, as CoreDNS.
const TRIES: u32 = 15;

/// Time between probes of upstreams that were found to loop.
const AGAIN: Duration = Duration::from_secs(30);

/// Probes under way.
#[derive(Debug, Default)]
pub struct LoopProbes {
    under_way: Mutex<Vec<Arc<Probe>>>,
}

#[derive(Debug)]
struct Probe {
    name: Name,
    zone: Name,
    upstream: Weak<Upstream>,
    came_back: AtomicBool,
}

impl LoopProbes {
    /// Says that somebody asks us for `name`. True: it is a probe of ours; its upstream has been marked.
    pub fn came_back(&self, name: &NameBuf) -> bool {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(probe) = under_way.iter().find(|probe| probe.name.as_bytes() == name.as_bytes()) else {
            return false;
        };
        let first = !probe.came_back.swap(true, Relaxed);
        if let Some(upstream) = probe.upstream.upgrade()
            && first
        {
            upstream.set_looped(true);
            tracing::error!(
                zone = %probe.zone,
                upstream = %upstream.address,
                "loop: this upstream sends our queries back to us and is not asked any more; \
                 name one for this zone that does not lead here"
            );
        }
        true
    }

    fn begin(&self, zone: &Name, upstream: &Arc<Upstream>) -> Option<Arc<Probe>> {
        let label = format!("{:032x}", rand::rng().random::<u128>());
        let name = if zone.is_root() { label } else { format!("{label}.{zone}") };
        let probe = Arc::new(Probe {
            // A zone so long that nothing fits under it has no names that could loop.
            name: name.parse().ok()?,
            zone: zone.clone(),
            upstream: Arc::downgrade(upstream),
            came_back: AtomicBool::new(false),
        });
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&probe));
        Some(probe)
    }

    fn end(&self, probe: &Arc<Probe>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|other| !Arc::ptr_eq(other, probe));
    }
}

/// Probes all upstreams of the tables in force: at once, and those that loop again and again. Ends never; the caller
/// drops it when there are new tables.
pub async fn watch(shared: Arc<Shared>) {
    let tables = shared.tables.load_full();
    let mut pairs: Vec<(Name, Arc<Upstream>)> = Vec::new();
    for block in tables.blocks.iter().filter(|block| block.detect_loop) {
        for zone in &block.zones {
            let responsible = block.forwarders.iter().filter(|forwarder| forwarder.matches(zone));
            pairs.extend(responsible.flat_map(|f| &f.upstreams).map(|up| (zone.clone(), Arc::clone(up))));
        }
    }
    drop(tables);
    let first = pairs.iter().map(|(zone, upstream)| async {
        for _ in 0..TRIES {
            if probe(&shared, zone, upstream).await.is_some() {
                return;
            }
            sleep(PATIENCE).await;
        }
    });
    // One after another for each pair, all pairs side by side; bounded by the Corefile.
    let mut tasks = futures_util::stream::FuturesUnordered::from_iter(first);
    while futures_util::StreamExt::next(&mut tasks).await.is_some() {}
    loop {
        sleep(AGAIN).await;
        for (zone, upstream) in pairs.iter().filter(|(_, upstream)| upstream.is_looped()) {
            if probe(&shared, zone, upstream).await == Some(false) {
                upstream.set_looped(false);
                tracing::info!(%zone, upstream = %upstream.address, "loop: this upstream is in order again");
            }
        }
    }
}

/// Whether an upstream loops; `None` when it does not answer and nothing came back.
async fn probe(shared: &Shared, zone: &Name, upstream: &Arc<Upstream>) -> Option<bool> {
    let probes = &shared.resolver.loop_probes;
    let probe = probes.begin(zone, upstream)?;
    let ask = Ask {
        name: probe.name.as_bytes().into(),
        qtype: rtype::HINFO,
        qclass: CLASS_IN,
        recursion_desired: true,
        checking_disabled: false,
        dnssec_ok: false,
        options: Box::default(),
    };
    let answered = matches!(timeout(PATIENCE, upstream.probe(&ask)).await, Ok(Ok(_)));
    probes.end(&probe);
    match (probe.came_back.load(Relaxed), answered) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}
