//! What the demo's two programs share: the command line and the look of the output.
//!
//! `cargo demo` runs `nodestub-demo` (this package), which has no dependencies and therefore compiles in a second. It
//! checks the machine, builds the daemons and `nodestub-demo-show` in one cargo command, and becomes the latter.
#![forbid(unsafe_code)]

pub mod args;
pub mod terminal;

/// Environment variable that carries the start over from the first program to the second, in milliseconds since 1970.
pub const STARTED_VARIABLE: &str = "NODESTUB_DEMO_STARTED_MS";
/// As [`STARTED_VARIABLE`]: the moment at which all was built.
pub const BUILT_VARIABLE: &str = "NODESTUB_DEMO_BUILT_MS";

/// The time in milliseconds since 1970, for these variables.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
