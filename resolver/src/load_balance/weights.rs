//! `loadbalance weighted FILE`: which address comes first, by weights from a file.
//!
//! ```text
//!   # a name, then its addresses with their weights, 1 to 255; an address that is not named has weight 1
//!   www.example.com
//!   192.0.2.1 3
//!   192.0.2.2 1
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nodestub_wire::{Name, OwnedRecord};
use rand::Rng;

use super::address;

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

type Table = HashMap<Name, HashMap<IpAddr, u8>>;

/// The weights of one file.
#[derive(Debug)]
pub struct Weights {
    file: PathBuf,
    table: ArcSwap<Table>,
}

impl Weights {
    /// Reads the file, and again every `interval` (0: never) for as long as the result is in use. A file that cannot be
    /// read, or is wrong, is said; what was read before stays.
    pub fn start(file: PathBuf, interval: Duration) -> Arc<Self> {
        let weights = Arc::new(Self { file, table: ArcSwap::default() });
        weights.refresh();
        if !interval.is_zero() {
            let watched = Arc::downgrade(&weights);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(interval).await;
                    let Some(weights) = watched.upgrade() else { return };
                    // Reading may block; it is off the threads that answer.
                    if tokio::task::spawn_blocking(move || weights.refresh()).await.is_err() {
                        return;
                    }
                }
            });
        }
        weights
    }

    fn refresh(&self) {
        let read = || {
            let length = std::fs::metadata(&self.file).map_err(|error| error.to_string())?.len();
            if length > MAX_FILE {
                return Err(format!("it has more than {MAX_FILE} bytes"));
            }
            parse(&std::fs::read_to_string(&self.file).map_err(|error| error.to_string())?)
        };
        match read() {
            Ok(table) if table != **self.table.load() => self.table.store(Arc::new(table)),
            Ok(_) => {}
            Err(cause) => {
                tracing::warn!(file = %self.file.display(), cause, "loadbalance: no new weights; the last ones stay");
            }
        }
    }

    /// Puts one address first, drawn by weight; the others keep their order but for the one that changes places with it.
    pub(super) fn order(&self, records: &mut [OwnedRecord], random: &mut impl Rng) {
        let table = self.table.load();
        let addresses: Vec<(usize, u32)> = records
            .iter()
            .enumerate()
            .filter_map(|(index, record)| {
                let address = address(record.rtype, &record.data)?;
                let owner = Name::from_wire(&record.owner).ok()?;
                let weight =
                    table.get(&owner).and_then(|weights| weights.get(&address)).copied().unwrap_or(1);
                Some((index, u32::from(weight)))
            })
            .collect();
        let total: u32 = addresses.iter().map(|(_, weight)| weight).sum();
        let Some(&(first, _)) = addresses.first() else { return };
        let mut drawn = random.random_range(0..total.max(1));
        for (index, weight) in addresses {
            if drawn < weight {
                records.swap(first, index);
                return;
            }
            drawn -= weight;
        }
    }
}

fn parse(text: &str) -> Result<Table, String> {
    let mut table = Table::new();
    let mut name: Option<Name> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {}: {what}", number + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [word] if word.parse::<IpAddr>().is_ok() => return Err(wrong("an address without a weight")),
            [word] => {
                let read: Name = word.parse().map_err(|_| wrong("no domain name"))?;
                table.entry(read.clone()).or_default();
                name = Some(read);
            }
            [address, weight] => {
                let name = name.clone().ok_or_else(|| wrong("an address before the first name"))?;
                let address = address.parse().map_err(|_| wrong("no IP address"))?;
                let weight = weight.parse().ok().filter(|weight| *weight > 0);
                let weight = weight.ok_or_else(|| wrong("a weight is a number from 1 to 255"))?;
                // The first of two counts.
                table.entry(name).or_default().entry(address).or_insert(weight);
            }
            _ => return Err(wrong("more than an address and a weight")),
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_weights_and_says_which_line_is_wrong() {
        let table = parse("# c\nwww.test\n 192.0.2.1 3\n192.0.2.1 9\n\nb.test.\n::1 255\n").unwrap();
        let weight = |name: &str, address: &str| table[&name.parse().unwrap()][&address.parse().unwrap()];
        assert_eq!((weight("WWW.test.", "192.0.2.1"), weight("b.test", "::1")), (3, 255));
        for text in ["192.0.2.1", "192.0.2.1 3", "a\n192.0.2.1 0", "a\n192.0.2.1 256", "a\nx 1", "a b c"] {
            assert!(parse(text).unwrap_err().starts_with("line "), "{text}");
        }
    }
}
