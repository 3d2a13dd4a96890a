//! DNS bytes: no sockets, no clock, no async, and on the borrowing paths no allocation.
//!
//! In the order in which a packet meets them:
//!
//! - `Cursor`: the only place that keeps an offset into a packet by hand.
//! - `Name`: an owned, lower-cased name, for configuration and keys.
//! - `Query`: a client's question, borrowed from the buffer that it came in.
//! - `Reply`: an upstream's answer, walked once and checked; finds the TTLs that a cache will patch.
//! - `edit`: what is done to a packet in place: headers, TTLs, EDNS, truncation.
//!
//! Deliberately not here: records as objects. A packet that is passed on is never re-encoded; where answers are
//! made (local names), the daemon uses `hickory-proto`.
#![forbid(unsafe_code)]

mod name;

pub use name::{MAX_LABEL, MAX_LABELS, MAX_NAME, Name, NameError};
