//! What operators see: counters with CoreDNS's names and labels, and our own under `nodestub_`.
//!
//! - `counters`: what the hot path increments, one lane for each thread.
//! - `plugins`: what single directives count.
//! - `text`: the page.
//! - `tls`: of clients over TLS.
//! - `page`: sums the lanes and writes the page when it is asked for.

mod counters;
mod page;
mod plugins;
mod text;
mod tls;

pub use counters::{
    Counter, DROPPED, Durations, Lane, Observation, Protocol, RCODES, RouteCounters, SlimDurations, Source,
};
pub use page::{Facts, render};
pub use plugins::PluginCounters;
