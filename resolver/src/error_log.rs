//! `errors`: lines about queries that failed, and `consolidate`, which makes one line of many that look alike.
//!
//! ```text
//!   a query failed ─► no expression matches ─────────────► a line
//!                  └► the first that does ─► counted ─► a line when its time is over, or when the block goes
//! ```
//!
//! Errors are worded as CoreDNS words them where an operator's expression may depend on it (`i/o timeout`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nodestub_corefile::config::logging::{Consolidate, ErrorLevel, Errors};
use nodestub_corefile::type_name;
use nodestub_wire::{Name, Rcode};
use regex::Regex;

use crate::forward::{ExchangeError, ForwardError};
use crate::metrics::Protocol;

/// The `errors` of one block.
#[derive(Debug)]
pub struct ErrorLog(Vec<Arc<Gathered>>);

/// Errors that one `consolidate` gathers.
#[derive(Debug)]
struct Gathered {
    config: Consolidate,
    regex: Regex,
    count: AtomicU64,
}

/// What is done with an error.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It is said, this loud.
    Say(ErrorLevel),
    /// It is counted.
    Keep,
}

impl ErrorLog {
    /// From what was read: the expressions compile.
    pub fn new(errors: &Errors) -> Self {
        let gathered = errors.consolidate.iter().filter_map(|config| {
            let regex = Regex::new(config.pattern.as_str()).ok()?;
            Some(Arc::new(Gathered { config: config.clone(), regex, count: AtomicU64::new(0) }))
        });
        Self(gathered.collect())
    }

    /// A query has failed. Called on the runtime's threads, which a gathering waits on.
    pub fn say(&self, rcode: Rcode, name: &Name, qtype: u16, error: &str) {
        let (decision, started) = self.decide(error);
        if let Some(gathered) = started {
            let (period, gathered) = (gathered.config.period, Arc::downgrade(gathered));
            tokio::spawn(async move {
                tokio::time::sleep(period).await;
                gathered.upgrade().inspect(|gathered| gathered.finish());
            });
        }
        if let Decision::Say(level) = decision {
            write(level, &format!("errors: {} {name} {}: {error}", rcode.0, type_name(qtype)));
        }
    }

    /// What is done with an error, and the gathering that begins with it.
    fn decide(&self, error: &str) -> (Decision, Option<&Arc<Gathered>>) {
        let Some(gathered) = self.0.iter().find(|gathered| gathered.regex.is_match(error)) else {
            return (Decision::Say(ErrorLevel::Error), None);
        };
        if gathered.count.fetch_add(1, Relaxed) > 0 {
            return (Decision::Keep, None);
        }
        let decision =
            if gathered.config.show_first { Decision::Say(gathered.config.level) } else { Decision::Keep };
        (decision, Some(gathered))
    }

    /// Says what was gathered so far.
    pub fn flush(&self) {
        for gathered in &self.0 {
            gathered.finish();
        }
    }
}

impl Drop for ErrorLog {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Gathered {
    fn finish(&self) {
        if let Some(line) = self.summary() {
            write(self.config.level, &line);
        }
    }

    /// Takes the count; `None`: there is nothing to say, or it was said.
    fn summary(&self) -> Option<String> {
        let count = self.count.swap(0, Relaxed);
        let is_said = count == 1 && self.config.show_first;
        (count > 0 && !is_said).then(|| {
            let Consolidate { pattern, period, .. } = &self.config;
            format!("errors: {count} errors like '{}' occurred in last {period:?}", pattern.as_str())
        })
    }
}

fn write(level: ErrorLevel, line: &str) {
    match level {
        ErrorLevel::Warning => tracing::warn!("{line}"),
        ErrorLevel::Error => tracing::error!("{line}"),
        ErrorLevel::Info => tracing::info!("{line}"),
        ErrorLevel::Debug => tracing::debug!("{line}"),
    }
}

/// A failure of upstreams, in the words of CoreDNS and Go where those have some.
pub fn in_words(error: &ForwardError, protocol: Protocol) -> String {
    let protocol = protocol.label();
    match error {
        ForwardError::AllDown => "no healthy proxies".to_owned(),
        ForwardError::Failed { upstream, cause } => match cause {
            ExchangeError::TimedOut => format!("read {protocol} ->{upstream}: i/o timeout"),
            ExchangeError::Connect(cause) => {
                format!("dial {protocol} {upstream}: connect: {}", reason(cause))
            }
            ExchangeError::Send(cause) => format!("write {protocol} ->{upstream}: write: {}", reason(cause)),
            ExchangeError::Receive(cause) => format!("read {protocol} ->{upstream}: read: {}", reason(cause)),
            ExchangeError::Closed => format!("read {protocol} ->{upstream}: EOF"),
            ExchangeError::Busy => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// `connection refused`, without Rust's number behind it.
fn reason(cause: &std::io::Error) -> String {
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(consolidate: &str) -> ErrorLog {
        let options = nodestub_corefile::Options::default();
        let text = format!(". {{\n errors {{\n  {consolidate}\n }}\n whoami\n}}\n");
        let loaded =
            nodestub_corefile::parse("Corefile", &text, &options, &nodestub_corefile::System).unwrap();
        ErrorLog::new(loaded.config.blocks.first().unwrap().errors.as_ref().unwrap())
    }

    #[test]
    fn what_looks_alike_is_counted_by_the_first_expression_that_matches() {
        let log = log("consolidate 1h \"timeout$\" warning\n  consolidate 1h \"^read\" show_first");
        assert_eq!(log.decide("dial: EOF").0, Decision::Say(ErrorLevel::Error));
        assert_eq!(log.decide("read: i/o timeout").0, Decision::Keep);
        assert_eq!(log.decide("x timeout").0, Decision::Keep);
        assert_eq!(log.decide("read: EOF").0, Decision::Say(ErrorLevel::Error));
        let said: Vec<_> = log.0.iter().map(|gathered| gathered.summary()).collect();
        assert_eq!(
            said.first().unwrap().as_deref(),
            Some("errors: 2 errors like 'timeout$' occurred in last 3600s")
        );
        // It was said at once, and is all there was.
        assert_eq!(said.get(1).unwrap(), &None);
        assert!(log.decide("read: EOF").1.is_some(), "the next one begins anew");
        assert_eq!(log.decide("read: EOF").0, Decision::Keep);
        assert!(log.0.get(1).unwrap().summary().unwrap().contains("2 errors like '^read'"));
    }

    #[test]
    fn failures_are_worded_so_that_expressions_for_coredns_match() {
        let failed = |cause| ForwardError::Failed { upstream: "10.0.0.1:53".parse().unwrap(), cause };
        let refused = Arc::new(std::io::Error::from_raw_os_error(111));
        for (error, protocol, pattern) in [
            (failed(ExchangeError::TimedOut), Protocol::Udp, "^read udp .* i/o timeout$"),
            (
                failed(ExchangeError::Connect(Arc::clone(&refused))),
                Protocol::Tcp,
                "^dial tcp .*: connect: connection refused$",
            ),
            (failed(ExchangeError::Receive(refused)), Protocol::Udp, "^read udp .*: connection refused$"),
            (ForwardError::AllDown, Protocol::Udp, "^no healthy proxies$"),
        ] {
            let words = in_words(&error, protocol);
            assert!(Regex::new(pattern).unwrap().is_match(&words), "{words}");
        }
    }
}
