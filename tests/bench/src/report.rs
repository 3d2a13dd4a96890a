//! The tables: medians of interleaved runs, and what was aimed at.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::peers::Peer;
use crate::run::{Plan, Sample, Samples};
use crate::workload::Workload;

/// Markdown.
pub(crate) fn write(plan: &Plan, versions: &BTreeMap<Peer, String>, samples: &Samples) -> String {
    let report = Report { plan, versions, samples };
    let mut text = report.head();
    for &workload in &plan.workloads {
        text.push_str(&report.table(workload));
    }
    text.push_str(&report.goals());
    text
}

struct Report<'a> {
    plan: &'a Plan,
    versions: &'a BTreeMap<Peer, String>,
    samples: &'a Samples,
}

impl Report<'_> {
    fn head(&self) -> String {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown CPU");
        let kernel = read("/proc/sys/kernel/osrelease");
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let mut text = format!(
            "# Benchmark\n\nWritten by `tests/bench/run`. Medians of {} interleaved runs of {} s on {} ({count} CPUs), Linux {}. \
             CPU time is that of the server's process, in microseconds for each answered query; × echo is the median of the \
             ratios within a round. Only ratios of one table can be compared; microseconds belong to the machine.\n\n",
            self.plan.rounds,
            self.plan.seconds,
            cpu.trim_start_matches([' ', '\t', ':']),
            kernel.trim(),
        );
        let servers: Vec<_> = self
            .versions
            .iter()
            .filter(|(peer, _)| !peer.is_echo())
            .map(|(peer, version)| format!("{} {version}", peer.name()))
            .collect();
        let _ = writeln!(
            text,
            "Servers: {}. `echo` sends back what came, by `recvmmsg` and `sendmmsg`; `echo-blocking` by `recvfrom` and `sendto`.",
            servers.join(", ")
        );
        for peer in self.plan.peers.iter().filter(|peer| !self.versions.contains_key(peer)) {
            let _ = writeln!(text, "{} was not here.", peer.name());
        }
        text.push('\n');
        text
    }

    fn table(&self, workload: Workload) -> String {
        let mut text = format!("## {}\n\n", workload.title());
        text.push_str(match workload {
            Workload::Memory => "| server | idle MiB | with the names MiB | not answered |\n| --- | --- | --- | --- |\n",
            Workload::Burst => "| server | lost of 2,000, most of all rounds |\n| --- | --- |\n",
            Workload::Steady | Workload::Hog => "| server | CPU µs | × echo-blocking | p50 µs | p99 µs | lost |\n| --- | --- | --- | --- | --- | --- |\n",
            _ => "| server | q/s | CPU µs | × echo | lost |\n| --- | --- | --- | --- | --- |\n",
        });
        for &peer in self.versions.keys() {
            if peer.why_not(workload).is_some() {
                continue;
            }
            let name = peer.name();
            if self.all(workload, peer).is_empty() {
                let _ = writeln!(text, "| {name} | did not work |");
                continue;
            }
            let lost = self.all(workload, peer).iter().map(|sample| sample.lost).max().unwrap_or(0);
            let value = |what: fn(&Sample) -> Option<f64>, digits: usize| {
                self.median(workload, peer, what)
                    .map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
            };
            let cpu = value(|sample| Some(sample.cpu_per_query), 2);
            let base = if workload.is_steady() { Peer::BlockingEcho } else { Peer::BatchedEcho };
            let ratio = self
                .ratio(workload, peer, base, |sample| Some(sample.cpu_per_query))
                .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = match workload {
                Workload::Memory => {
                    let (idle, full) = (
                        value(|sample| Some(mib(sample.idle_kib)), 1),
                        value(|sample| Some(mib(sample.resident_kib)), 1),
                    );
                    writeln!(text, "| {name} | {idle} | {full} | {lost} |")
                }
                Workload::Burst => writeln!(text, "| {name} | {lost} |"),
                Workload::Steady | Workload::Hog => {
                    let (p50, p99) = (
                        value(|sample| sample.p50.map(f64::from), 0),
                        value(|sample| sample.p99.map(f64::from), 0),
                    );
                    writeln!(text, "| {name} | {cpu} | {ratio} | {p50} | {p99} | {lost} |")
                }
                _ => {
                    let rate = value(|sample| Some(sample.per_second), 0);
                    writeln!(text, "| {name} | {rate} | {cpu} | {ratio} | {lost} |")
                }
            };
        }
        for &peer in self.versions.keys() {
            if let Some(why) =
                peer.why_not(workload).filter(|_| !peer.is_echo() && peer != Peer::NodestubFirst)
            {
                let _ = writeln!(text, "\n{}: {why}.", peer.name());
            }
        }
        text.push('\n');
        text
    }

    /// What this resolver is to reach, and what it has reached here.
    fn goals(&self) -> String {
        let ours = Peer::Nodestub;
        if !self.versions.contains_key(&ours) {
            return String::new();
        }
        let cpu = |sample: &Sample| Some(sample.cpu_per_query);
        let p99 = |sample: &Sample| sample.p99.map(f64::from);
        let best = |workload, what: fn(&Sample) -> Option<f64>| {
            let rivals = self
                .versions
                .keys()
                .filter(|peer| !peer.is_echo() && !matches!(peer, Peer::Nodestub | Peer::NodestubFirst));
            rivals.filter_map(|peer| self.ratio(workload, ours, *peer, what)).max_by(f64::total_cmp)
        };
        let largest = |what: fn(&Sample) -> u64, workload| {
            self.all(workload, ours).iter().map(what).max().map(|value| value as f64)
        };
        let rows: Vec<(&str, Option<f64>, f64)> = vec![
            ("cached hit: CPU ÷ echo", self.ratio(Workload::Hits, ours, Peer::BatchedEcho, cpu), 1.15),
            ("cached hit: CPU ÷ best peer", best(Workload::Hits, cpu), 1.0),
            (
                "cached NXDOMAIN: CPU ÷ echo",
                self.ratio(Workload::Denials, ours, Peer::BatchedEcho, cpu),
                1.15,
            ),
            ("cached NXDOMAIN: CPU ÷ best peer", best(Workload::Denials, cpu), 1.0),
            (
                "hit at 10,000 q/s: CPU ÷ blocking echo",
                self.ratio(Workload::Steady, ours, Peer::BlockingEcho, cpu),
                0.6,
            ),
            ("hit at 10,000 q/s: CPU ÷ best peer", best(Workload::Steady, cpu), 1.0),
            ("hit at 10,000 q/s: p99 ÷ best peer", best(Workload::Steady, p99), 1.2),
            ("miss by UDP: CPU ÷ echo", self.ratio(Workload::MissesUdp, ours, Peer::BatchedEcho, cpu), 3.0),
            ("miss by UDP: CPU ÷ CoreDNS", self.ratio(Workload::MissesUdp, ours, Peer::CoreDns, cpu), 0.34),
            ("miss by TCP: CPU ÷ CoreDNS", self.ratio(Workload::MissesTcp, ours, Peer::CoreDns, cpu), 0.5),
            ("two threads: CPU ÷ one thread", self.threads_ratio(), 1.1),
            ("idle, MiB", largest(|sample| sample.idle_kib, Workload::Memory).map(|kib| kib / 1024.0), 10.0),
            (
                "100,000 names, MiB",
                largest(|sample| sample.resident_kib, Workload::Memory).map(|kib| kib / 1024.0),
                48.0,
            ),
            ("burst of 2,000: lost", largest(|sample| sample.lost, Workload::Burst), 0.0),
        ];
        let mut text =
            "## What is aimed at\n\n| what | at most | here | |\n| --- | --- | --- | --- |\n".to_owned();
        for (what, most, here) in rows.into_iter().filter_map(|(what, here, most)| Some((what, most, here?)))
        {
            let verdict = if here <= most { "reached" } else { "missed" };
            let _ = writeln!(text, "| {what} | {most} | {here:.2} | {verdict} |");
        }
        text
    }

    fn threads_ratio(&self) -> Option<f64> {
        let of = |workload| self.samples.get(&(workload, Peer::Nodestub));
        ratios(of(Workload::TwoThreads)?, of(Workload::Hits)?, |sample| Some(sample.cpu_per_query))
    }

    fn ratio(
        &self,
        workload: Workload,
        peer: Peer,
        base: Peer,
        what: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        ratios(self.samples.get(&(workload, peer))?, self.samples.get(&(workload, base))?, what)
    }

    fn all(&self, workload: Workload, peer: Peer) -> Vec<Sample> {
        self.samples.get(&(workload, peer)).into_iter().flatten().filter_map(|sample| *sample).collect()
    }

    fn median(&self, workload: Workload, peer: Peer, what: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.all(workload, peer).iter().filter_map(what).collect())
    }
}

/// The median of the ratios within each round.
fn ratios(
    ours: &[Option<Sample>],
    base: &[Option<Sample>],
    what: impl Fn(&Sample) -> Option<f64>,
) -> Option<f64> {
    let rounds = ours.iter().zip(base);
    let ratio = |(ours, base): (&Option<Sample>, &Option<Sample>)| {
        let (ours, base) = (what(ours.as_ref()?)?, what(base.as_ref()?)?);
        (base > 0.0).then(|| ours / base)
    };
    median(rounds.filter_map(ratio).collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) {
        f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper)
    } else {
        upper
    })
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let sample = |cpu_per_query| Some(Sample { cpu_per_query, ..Sample::default() });
        // A slow second round hits both; a run that failed counts for nobody.
        let ours = [sample(2.0), sample(20.0), None, sample(3.0)];
        let base = [sample(1.0), sample(10.0), sample(1.0), sample(1.0)];
        let ratio = ratios(&ours, &base, |sample| Some(sample.cpu_per_query)).unwrap();
        assert!((ratio - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
