//! What is counted for each query, without a counter that two threads write.
//!
//! Each route (a zone on a listening address) has one [`Lane`] for every worker thread of the fast side, which alone
//! writes it with plain stores, and one for the slow side, whose tasks share it with atomic additions. A scrape sums
//! the lanes. Label values are resolved when a Corefile is compiled; a query only increments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nodestub_cache::Kind;
use nodestub_wire::Rcode;

/// Upper bounds of durations in seconds: CoreDNS's `TimeBuckets`, 0.25 ms doubled fifteen times.
pub(super) const DURATION_BOUNDS: [f64; 16] = {
    let mut bounds = [0.00025; 16];
    let mut index = 1;
    while index < bounds.len() {
        #[expect(clippy::indexing_slicing, reason = "const, and within the loop's bounds")]
        {
            bounds[index] = bounds[index - 1] * 2.0;
        }
        index += 1;
    }
    bounds
};

/// Upper bounds of a few durations in seconds: CoreDNS's `SlimTimeBuckets`, 0.25 ms to 2.5 s.
pub(super) const SLIM_BOUNDS: [f64; 5] = [0.00025, 0.0025, 0.025, 0.25, 2.5];

/// Upper bounds of sizes in bytes: CoreDNS's.
pub(super) const SIZE_BOUNDS: [f64; 14] =
    [0., 100., 200., 300., 400., 511., 1023., 2047., 4095., 8291., 16e3, 32e3, 48e3, 64e3];

/// CoreDNS's `zone` label for queries of no zone.
pub const DROPPED: &str = "dropped";

/// Query types that have a label of their own (CoreDNS `vars/monitor.go`), in the order of their counters; any other
/// is `other`.
pub(super) const TYPES: [(u16, &str); 19] = [
    (1, "A"),
    (28, "AAAA"),
    (5, "CNAME"),
    (48, "DNSKEY"),
    (43, "DS"),
    (15, "MX"),
    (50, "NSEC3"),
    (47, "NSEC"),
    (2, "NS"),
    (12, "PTR"),
    (46, "RRSIG"),
    (6, "SOA"),
    (33, "SRV"),
    (16, "TXT"),
    (65, "HTTPS"),
    (64, "SVCB"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
];

/// Response codes that are counted apart: 0 to 16 (BADVERS), then all others together.
pub const RCODES: usize = 18;

/// Who made an answer: CoreDNS's `plugin` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody: an error of the server itself, whose label is empty.
    Server,
    /// Kept before.
    Cache,
    /// From `hosts`.
    Hosts,
    /// From an upstream.
    Forward,
    /// From `template`.
    Template,
    /// From `whoami`.
    Whoami,
    /// From `any`.
    Any,
    /// From `chaos`.
    Chaos,
    /// From `local`.
    Local,
    /// Denied by `acl`.
    Acl,
    /// Translated by `dns64`.
    Dns64,
}

impl Source {
    /// All of them, in the order of their counters.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Server, ""),
        (Self::Cache, "cache"),
        (Self::Hosts, "hosts"),
        (Self::Forward, "forward"),
        (Self::Template, "template"),
        (Self::Whoami, "whoami"),
        (Self::Any, "any"),
        (Self::Chaos, "chaos"),
        (Self::Local, "local"),
        (Self::Acl, "acl"),
        (Self::Dns64, "dns64"),
    ];
}

/// By which transport a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// One datagram.
    Udp,
    /// A message on a connection.
    Tcp,
}

impl Protocol {
    /// Both, in the order of their counters.
    pub const ALL: [Self; 2] = [Self::Udp, Self::Tcp];

    /// CoreDNS's `proto` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One answered query.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// How it was asked.
    pub protocol: Protocol,
    /// Whether by IPv6.
    pub v6: bool,
    /// QTYPE.
    pub qtype: u16,
    /// DO.
    pub dnssec_ok: bool,
    /// Bytes of the query.
    pub request_bytes: usize,
    /// Bytes of the reply.
    pub response_bytes: usize,
    /// How it ended.
    pub rcode: Rcode,
    /// Who answered.
    pub source: Source,
}

/// A counter that goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// What it shows.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Counts up; any thread may.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Relaxed);
    }

    fn count(&self, number: u64, lane: Writers) {
        match lane {
            Writers::One => self.0.store(self.0.load(Relaxed).wrapping_add(number), Relaxed),
            Writers::Many => self.add(number),
        }
    }
}

/// Counts in buckets, and a sum.
#[derive(Debug)]
pub struct Histogram<const PLACES: usize> {
    places: [Counter; PLACES],
    sum: Counter,
}

impl<const PLACES: usize> Default for Histogram<PLACES> {
    fn default() -> Self {
        Self { places: [const { Counter(AtomicU64::new(0)) }; PLACES], sum: Counter::default() }
    }
}

/// Durations; the sum is in nanoseconds.
pub type Durations = Histogram<17>;
/// Durations in `SLIM_BOUNDS`; the sum is in nanoseconds.
pub type SlimDurations = Histogram<6>;
/// Sizes; the sum is in bytes.
pub(super) type Sizes = Histogram<15>;

impl<const PLACES: usize> Histogram<PLACES> {
    fn record(&self, place: usize, number: u64, sum: u64, writers: Writers) {
        if let Some(counter) = self.places.get(place) {
            counter.count(number, writers);
        }
        self.sum.count(sum, writers);
    }

    /// Adds what this one shows to `counts`, and returns its sum.
    pub fn add_to(&self, counts: &mut [u64; PLACES]) -> u64 {
        for (count, place) in counts.iter_mut().zip(&self.places) {
            *count += place.get();
        }
        self.sum.get()
    }
}

impl Durations {
    /// Counts one duration; any thread may.
    pub fn observe(&self, duration: Duration) {
        self.record(duration_place(duration), 1, nanoseconds(duration), Writers::Many);
    }
}

impl SlimDurations {
    /// Counts one duration; any thread may.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let place = SLIM_BOUNDS.partition_point(|bound| *bound < seconds);
        self.record(place, 1, nanoseconds(duration), Writers::Many);
    }
}

fn duration_place(duration: Duration) -> usize {
    let seconds = duration.as_secs_f64();
    DURATION_BOUNDS.partition_point(|bound| *bound < seconds)
}

fn size_place(bytes: usize) -> usize {
    #[expect(clippy::cast_precision_loss, reason = "a DNS message has at most 65535 bytes")]
    let bytes = bytes as f64;
    SIZE_BOUNDS.partition_point(|bound| *bound < bytes)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, Copy)]
enum Writers {
    One,
    Many,
}

/// The counters of one writer for one route. Aligned so that two lanes never share a cache line (or the pair of lines
/// that a CPU fetches at once).
#[derive(Debug)]
#[repr(align(128))]
pub struct Lane {
    writers: Writers,
    /// By protocol, then family, then type.
    pub requests: [[[Counter; TYPES.len() + 1]; 2]; 2],
    /// Queries with DO.
    pub dnssec_ok: Counter,
    /// By source, then response code.
    pub responses: [[Counter; RCODES]; Source::ALL.len()],
    /// How long answers took.
    pub durations: Durations,
    /// By protocol.
    pub request_sizes: [Sizes; 2],
    /// By protocol.
    pub response_sizes: [Sizes; 2],
    /// Answers from the cache: with data, and denials.
    pub cache_hits: [Counter; 2],
    /// Queries that the cache could not answer.
    pub cache_misses: Counter,
    /// Queries that `acl` let pass.
    pub acl_allowed: Counter,
    /// Answers that had expired.
    pub stale: Counter,
    /// `prefetch`: answers that were asked for again before they ended.
    pub prefetched: Counter,
}

impl Lane {
    fn new(writers: Writers) -> Self {
        Self {
            writers,
            requests: Default::default(),
            dnssec_ok: Counter::default(),
            responses: Default::default(),
            durations: Durations::default(),
            request_sizes: Default::default(),
            response_sizes: Default::default(),
            cache_hits: Default::default(),
            cache_misses: Counter::default(),
            acl_allowed: Counter::default(),
            stale: Counter::default(),
            prefetched: Counter::default(),
        }
    }

    /// Counts one answered query; its duration is counted apart.
    pub fn observe(&self, observation: &Observation) {
        let Observation { protocol, v6, qtype, dnssec_ok, rcode, source, .. } = *observation;
        let types = TYPES.iter().position(|(number, _)| *number == qtype).unwrap_or(TYPES.len());
        let code = usize::from(rcode.0).min(RCODES - 1);
        let by_type = self.requests.get(protocol as usize).and_then(|family| family.get(usize::from(v6)));
        self.one(by_type.and_then(|by_type| by_type.get(types)));
        self.one(self.responses.get(source as usize).and_then(|codes| codes.get(code)));
        if dnssec_ok {
            self.one(Some(&self.dnssec_ok));
        }
        for (sizes, bytes) in [
            (&self.request_sizes, observation.request_bytes),
            (&self.response_sizes, observation.response_bytes),
        ] {
            if let Some(sizes) = sizes.get(protocol as usize) {
                sizes.record(size_place(bytes), 1, bytes as u64, self.writers);
            }
        }
    }

    /// Answers given so far.
    pub fn answered(&self) -> u64 {
        self.responses.iter().flatten().map(Counter::get).sum()
    }

    /// Counts `number` answers that took `each`.
    pub fn observe_durations(&self, each: Duration, number: u64) {
        let sum = nanoseconds(each).saturating_mul(number);
        self.durations.record(duration_place(each), number, sum, self.writers);
    }

    /// Counts an answer from the cache.
    pub fn cache_hit(&self, kind: Kind) {
        self.one(self.cache_hits.get(usize::from(kind == Kind::Denial)));
    }

    /// Counts a query that the cache could not answer.
    pub fn cache_miss(&self) {
        self.one(Some(&self.cache_misses));
    }

    /// Counts a query that `acl` let pass.
    pub fn allowed(&self) {
        self.one(Some(&self.acl_allowed));
    }

    /// One answer is asked for again before it ends.
    pub fn prefetched(&self) {
        self.one(Some(&self.prefetched));
    }

    /// Counts an answer that had expired.
    pub fn served_stale(&self) {
        self.one(Some(&self.stale));
    }

    fn one(&self, counter: Option<&Counter>) {
        if let Some(counter) = counter {
            counter.count(1, self.writers);
        }
    }
}

/// The lanes of one route.
#[derive(Debug)]
pub struct RouteCounters {
    /// CoreDNS's `server` label: `dns://169.254.20.10:53`.
    pub server: String,
    /// CoreDNS's `zone` label: `cluster.local.`, or [`DROPPED`].
    pub zone: String,
    workers: Box<[Lane]>,
    slow: Lane,
}

impl RouteCounters {
    /// Counters at zero, for so many worker threads.
    pub fn new(server: String, zone: String, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            server,
            zone,
            workers: (0..workers).map(|_| Lane::new(Writers::One)).collect(),
            slow: Lane::new(Writers::Many),
        })
    }

    /// The lane that worker thread `number`, and nobody else, writes.
    pub fn worker(&self, number: usize) -> &Lane {
        self.workers.get(number).unwrap_or(&self.slow)
    }

    /// The slow side's lane.
    pub fn slow(&self) -> &Lane {
        &self.slow
    }

    /// All lanes, for a scrape.
    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.workers.iter().chain([&self.slow])
    }

    /// The sum of one counter over all lanes.
    pub fn sum(&self, counter: impl Fn(&Lane) -> u64) -> u64 {
        self.lanes().map(counter).sum()
    }
}
