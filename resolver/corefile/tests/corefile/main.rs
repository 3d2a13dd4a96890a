//! The crate from outside: texts in, configuration or report out. The world around the texts is in memory (`world`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise; clippy.toml's permission does not reach helpers"
)]

mod around;
mod directives;
mod docs;
mod grammar;
mod node_local;
mod properties;
mod tls;
mod world;
