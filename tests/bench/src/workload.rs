//! What is asked: the workloads, and the names of each.

use std::io::{BufWriter, Write};
use std::path::Path;

/// Names that are asked again and again. Fewer than NodeLocal's Corefile lets CoreDNS keep (9,984, in 256 parts).
const KEPT: usize = 5_000;

/// Names that are asked once: more than any server answers in a run.
const ONCE: usize = 1_500_000;

/// Names for the memory that they take.
pub(crate) const HELD: usize = 100_000;

/// The zone that NodeLocal's Corefile forwards by TCP.
const CLUSTER: &str = "default.svc.cluster.local";

/// A zone that it forwards by UDP.
const OUTSIDE: &str = "bench.example.com";

/// Queries a second of [`Workload::Steady`].
pub(crate) const STEADY_RATE: u32 = 10_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// Cached, as fast as it goes.
    Hits,
    /// Cached denials, as fast as it goes.
    Denials,
    /// Each name once, upstream by UDP.
    MissesUdp,
    /// Each name once, upstream by TCP.
    MissesTcp,
    /// Nine of ten cached, upstream by UDP.
    Mix,
    /// Cached, at a fixed rate, two threads, and nobody bound to a CPU.
    Steady,
    /// As [`Self::Steady`], beside processes that never sleep.
    Hog,
    /// Cached, as fast as it goes, two threads, and nobody bound to a CPU.
    TwoThreads,
    /// What is resident: idle, then with [`HELD`] names.
    Memory,
    /// Two thousand queries at once, after a second of silence.
    Burst,
}

impl Workload {
    pub(crate) const ALL: [Self; 10] = [
        Self::Hits,
        Self::Denials,
        Self::MissesUdp,
        Self::MissesTcp,
        Self::Mix,
        Self::Steady,
        Self::Hog,
        Self::TwoThreads,
        Self::Memory,
        Self::Burst,
    ];

    /// On the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hits => "hits",
            Self::Denials => "denials",
            Self::MissesUdp => "misses-udp",
            Self::MissesTcp => "misses-tcp",
            Self::Mix => "mix",
            Self::Steady => "steady",
            Self::Hog => "hog",
            Self::TwoThreads => "two-threads",
            Self::Memory => "memory",
            Self::Burst => "burst",
        }
    }

    /// In the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Hits => "Cached hits, saturated, one CPU",
            Self::Denials => "Cached NXDOMAINs, saturated, one CPU",
            Self::MissesUdp => "Misses, upstream by UDP, saturated, one CPU",
            Self::MissesTcp => "Misses, upstream by TCP, saturated, one CPU",
            Self::Mix => "Nine hits to one miss by UDP, saturated, one CPU",
            Self::Steady => "Cached hits at 10,000 q/s, two threads, client and server free to float",
            Self::Hog => "Cached hits at 10,000 q/s, beside a process that keeps every CPU busy",
            Self::TwoThreads => "Cached hits, saturated, two threads, client and server free to float",
            Self::Memory => "Resident memory: idle, and with 100,000 cached names",
            Self::Burst => "2,000 queries at once, after a second of silence",
        }
    }

    /// Whether an echo can take part: it knows no upstream, and keeps nothing.
    pub(crate) fn suits_echo(self) -> bool {
        self != Self::Memory
    }

    /// Whether queries come at [`STEADY_RATE`], and how long answers take is of interest.
    pub(crate) fn is_steady(self) -> bool {
        matches!(self, Self::Steady | Self::Hog)
    }

    /// Threads of the server.
    pub(crate) fn threads(self) -> u32 {
        if self.floats() { 2 } else { 1 }
    }

    /// Whether client and server may use all CPUs.
    pub(crate) fn floats(self) -> bool {
        matches!(self, Self::Steady | Self::Hog | Self::TwoThreads)
    }

    /// Whether the upstream is asked by TCP.
    pub(crate) fn by_tcp(self) -> bool {
        self == Self::MissesTcp
    }

    /// Whether names are asked that nobody has asked before.
    pub(crate) fn misses(self) -> bool {
        matches!(self, Self::MissesUdp | Self::MissesTcp | Self::Mix)
    }

    /// Writes the names that are asked before anything is measured, and those that are asked then.
    ///
    /// # Errors
    /// The files cannot be written.
    pub(crate) fn write_names(self, warm_up: &Path, measured: &Path) -> std::io::Result<()> {
        let kept = |zone| (0..KEPT).map(move |number| format!("name{number}.{zone} A"));
        let once = |zone| (0..ONCE).map(move |number| format!("once{number}.{zone} A"));
        let first = |zone| (0..2_000).map(move |number| format!("oncefirst{number}.{zone} A"));
        match self {
            Self::Hits | Self::Steady | Self::Hog | Self::TwoThreads | Self::Burst => {
                write(warm_up, kept(CLUSTER))?;
                write(measured, kept(CLUSTER))
            }
            Self::Denials => {
                let names = || (0..KEPT).map(|number| format!("nx{number}.{OUTSIDE} A"));
                write(warm_up, names())?;
                write(measured, names())
            }
            Self::MissesUdp => {
                write(warm_up, first(OUTSIDE))?;
                write(measured, once(OUTSIDE))
            }
            Self::MissesTcp => {
                write(warm_up, first(CLUSTER))?;
                write(measured, once(CLUSTER))
            }
            Self::Mix => {
                write(warm_up, kept(OUTSIDE))?;
                let mut kept = kept(OUTSIDE).collect::<Vec<_>>().into_iter().cycle();
                let one_in_ten = once(OUTSIDE)
                    .enumerate()
                    .map(|(number, once)| if number % 10 == 0 { once } else { kept.next().unwrap_or(once) });
                write(measured, one_in_ten)
            }
            Self::Memory => {
                let names = (0..HELD).map(|number| format!("name{number}.{OUTSIDE} A"));
                write(warm_up, names)?;
                write(measured, std::iter::empty())
            }
        }
    }
}

fn write(path: &Path, names: impl Iterator<Item = String>) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    for name in names {
        writeln!(file, "{name}")?;
    }
    file.flush()
}
