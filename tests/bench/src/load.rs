//! dnsperf: how it is called, and what it says.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use nodestub_lab::Netns;

/// What dnsperf saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) completed: u64,
    pub(crate) lost: u64,
    pub(crate) per_second: f64,
    /// Of NOERROR and NXDOMAIN, in percent.
    pub(crate) answered_percent: f64,
    /// Sorted, in microseconds; only where they were asked for.
    pub(crate) latencies: Vec<u32>,
}

/// How dnsperf asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) server: &'a str,
    pub(crate) names: &'a Path,
    /// Each name once; otherwise for so many seconds.
    pub(crate) seconds: Option<u32>,
    /// Queries a second; `None`: as many as are answered.
    pub(crate) rate: Option<u32>,
    /// Whether the latency of each query is wanted.
    pub(crate) latencies: bool,
    /// The CPU for it, where it is bound to one.
    pub(crate) cpu: Option<usize>,
}

impl Load<'_> {
    /// Runs dnsperf to its end, in the namespace. `output` is a file for what it prints.
    ///
    /// # Errors
    /// It cannot be started, fails, or prints something else than it used to.
    pub(crate) fn run(&self, net: &Netns, output: &Path) -> Result<Outcome, String> {
        let mut command = pinned("dnsperf", self.cpu);
        command.args(["-s", self.server, "-c", "20", "-q", "400", "-T", "1", "-t", "5", "-d"]);
        command.arg(self.names);
        match self.seconds {
            Some(seconds) => command.args(["-l", &seconds.to_string()]),
            None => command.args(["-n", "1"]),
        };
        if let Some(rate) = self.rate {
            command.args(["-Q", &rate.to_string()]);
        }
        if self.latencies {
            command.arg("-v");
        }
        let file =
            File::create(output).map_err(|error| format!("cannot write {}: {error}", output.display()))?;
        command.stdout(Stdio::from(file));
        let ended = net.output(command).map_err(|error| error.to_string())?;
        if !ended.status.success() {
            return Err(format!("dnsperf failed: {}", String::from_utf8_lossy(&ended.stderr).trim()));
        }
        let file =
            File::open(output).map_err(|error| format!("cannot read {}: {error}", output.display()))?;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        read(lines).ok_or_else(|| "dnsperf's output has no statistics".to_owned())
    }
}

/// A program on one CPU, or wherever it likes.
pub(crate) fn pinned(program: impl AsRef<std::ffi::OsStr>, cpu: Option<usize>) -> Command {
    match cpu {
        Some(cpu) => {
            // It replaces itself by the program, so that the process is the program's.
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string()]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

fn read(lines: impl Iterator<Item = String>) -> Option<Outcome> {
    let mut outcome = Outcome::default();
    let mut complete = false;
    for line in lines {
        if let Some(answer) = line.strip_prefix("> ") {
            if let Some(seconds) = answer.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "at most dnsperf's time limit of 5 s"
                )]
                outcome.latencies.push((seconds * 1e6).round() as u32);
            }
            continue;
        }
        let Some((label, value)) = line.trim().split_once(':') else { continue };
        let first = value.split_whitespace().next().unwrap_or_default();
        match label {
            "Queries completed" => outcome.completed = first.parse().ok()?,
            "Queries lost" => outcome.lost = first.parse().ok()?,
            "Queries per second" => {
                outcome.per_second = first.parse().ok()?;
                complete = true;
            }
            "Response codes" => outcome.answered_percent = answered(value),
            _ => {}
        }
    }
    outcome.latencies.sort_unstable();
    complete.then_some(outcome)
}

/// ` NOERROR 4 (100.00%), SERVFAIL 1 (…)`.
fn answered(codes: &str) -> f64 {
    let good = codes.split(',').filter(|code| code.contains("NOERROR") || code.contains("NXDOMAIN"));
    good.filter_map(|code| code.split_once('(')?.1.split('%').next()?.parse::<f64>().ok()).sum()
}

/// The value below which `percent` of a sorted list lie.
pub(crate) fn percentile(sorted: &[u32], percent: usize) -> Option<u32> {
    let index = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_dnsperf_prints() {
        let text = "> NOERROR a.example. A 0.000182\n> NXDOMAIN b.example. AAAA 0.000109\nStatistics:\n\n  \
                    Queries sent:         4\n  Queries completed:    3 (75.00%)\n  Queries lost:         1 (25.00%)\n\n  \
                    Response codes:       NOERROR 2 (66.67%), SERVFAIL 1 (33.33%)\n  \
                    Run time (s):         0.005747\n  Queries per second:   696.015312\n";
        let outcome = read(text.lines().map(str::to_owned)).unwrap();
        assert_eq!((outcome.completed, outcome.lost), (3, 1));
        assert!((outcome.per_second - 696.015_312).abs() < 1e-9);
        assert!((outcome.answered_percent - 66.67).abs() < 1e-9);
        assert_eq!(outcome.latencies, [109, 182]);
        assert_eq!(read(["nothing".to_owned()].into_iter()), None);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let values: Vec<u32> = (1..=200).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (Some(100), Some(198)));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile(&[], 99), None);
    }
}
