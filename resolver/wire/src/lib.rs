//! DNS bytes: no sockets, no clock, no async, and nothing allocated where a client's packet is read or a kept answer
//! is given.
//!
//! In the order in which a packet meets them:
//!
//! - [`Cursor`]: the only place that keeps an offset into a packet by hand.
//! - [`Query`]: a client's question, admitted or not.
//! - [`Ask`]: the question that we pass on.
//! - [`Reply`]: an upstream's response, walked once and checked.
//! - [`Answer`]: its records as they are kept, and how a reply is built from them in the query's own buffer.
//! - [`OwnedRecord`]: records that a Corefile has rewritten; the slow side's.
//! - [`Name`]: an owned, lower-cased name, for configuration.
//!
//! A packet that is passed on is never re-encoded; where answers are made (local names), the daemon uses
//! `hickory-proto`.
#![forbid(unsafe_code)]

mod answer;
mod ask;
mod cursor;
mod header;
mod name;
mod options;
mod query;
mod record;
mod reply;

pub use answer::{Answer, OwnedAnswer, write_error};
pub use ask::{Ask, UPSTREAM_UDP_PAYLOAD};
pub use cursor::{Cursor, Malformed, NameBuf};
pub use header::{CLASS_IN, Flags, HEADER, Header, Rcode, rtype};
pub use name::{MAX_LABEL, MAX_LABELS, MAX_NAME, Name, NameError, name_text, wire_name};
pub use options::{add_keepalive, add_padding, asks_keepalive, asks_padding};
pub use query::{Admission, Edns, MAX_UDP_PAYLOAD, MIN_UDP_PAYLOAD, OPT, Query};
pub use record::OwnedRecord;
pub use reply::{MAX_RECORDS, Range, Record, Reply, Section};
