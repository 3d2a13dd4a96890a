//! Memory after a flood: what thousands of connections and misses took goes back to the system.
//!
//! The allocator keeps freed memory for the next allocation of the same thread, which is right while work goes on. After
//! a flood it would be held for good, on a node where every pod has its share.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::sys;

/// How often one looks. A flood that is shorter than this may be missed, and can then not have taken much.
const INTERVAL: Duration = Duration::from_secs(1);

/// Connections and misses together from which on it is a flood.
const FLOOD: usize = 256;

/// Connections and misses together at which it is over.
const OVER: usize = 32;

/// Watches for the end of a flood, for ever; the caller ends it by dropping.
pub(super) async fn give_back_after_floods(shared: Arc<Shared>) {
    let mut flooded = false;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let (now, trim) = follow(flooded, shared.clients.connections() + shared.misses_under_way());
        flooded = now;
        if trim {
            // Some milliseconds, in which nobody who answers hits wants memory.
            drop(tokio::task::spawn_blocking(sys::give_back_memory).await);
        }
    }
}

/// Whether there is a flood, and whether it has just ended.
fn follow(flooded: bool, under_way: usize) -> (bool, bool) {
    if under_way >= FLOOD {
        (true, false)
    } else if flooded && under_way <= OVER {
        (false, true)
    } else {
        (flooded, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_for_each_flood_and_never_within_one() {
        let mut flooded = false;
        let mut trims = vec![];
        for (step, under_way) in [0, 100, 0, 300, 5000, 200, 33, 32, 0, 10, 256, 0].into_iter().enumerate() {
            let (now, trim) = follow(flooded, under_way);
            flooded = now;
            if trim {
                trims.push(step);
            }
        }
        assert_eq!(trims, [7, 11]);
    }
}
