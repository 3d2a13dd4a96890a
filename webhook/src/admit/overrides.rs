//! Annotations of a pod or a namespace, read into [`Overrides`].
//!
//! A value that is not allowed is as if it were not there: the next level's counts (pod, then namespace, then the
//! webhook's defaults), and a warning names the annotation and what it may say.

use std::net::IpAddr;
use std::str::FromStr;

use super::facts::Namespace;
use super::keys;
use super::names::Domain;
use super::options::{ALLOWED_OPTIONS, DnsOption, NDOTS, number};
use super::policy::{ALLOWED_FALLBACKS, Overrides};
use super::reason::{Place, Warning};
use super::rollout::{ALLOWED_SHARES, Share};

/// The most local addresses of one pod: a third would leave no room for a fallback.
const MAX_LOCAL_ADDRESSES: usize = 2;

/// Reads the annotations of one level. Whether `fallback: none` can be granted is `compose`'s affair.
pub(super) fn read<'a>(
    annotations: impl Iterator<Item = (&'a str, &'a str)>,
    place: Place,
    warnings: &mut Vec<Warning>,
) -> Overrides {
    let mut overrides = Overrides::default();
    for (key, value) in annotations.filter(|(key, _)| key.starts_with(keys::PREFIX)) {
        let mut bad = |key: &'static str, allowed: &'static str| {
            warnings.push(Warning::BadValue { place, key, value: value.to_owned(), allowed });
        };
        match key {
            keys::NDOTS => match number(value.trim(), &NDOTS) {
                Some(dots) => overrides.ndots = Some(dots),
                None => bad(keys::NDOTS, "0 to 15"),
            },
            keys::OPTIONS => match list::<DnsOption>(value) {
                Some(options) => overrides.options = options,
                None => bad(keys::OPTIONS, ALLOWED_OPTIONS),
            },
            keys::SEARCHES => match list::<Domain>(value) {
                Some(searches) => overrides.searches = Some(searches),
                None => bad(keys::SEARCHES, "domain names, separated by commas"),
            },
            keys::FALLBACK => match value.trim().parse() {
                Ok(fallback) => overrides.fallback = Some(fallback),
                Err(_) => bad(keys::FALLBACK, ALLOWED_FALLBACKS),
            },
            keys::LOCAL_ADDRESS => match local_addresses(value) {
                Some(addresses) => overrides.local_addresses = Some(addresses),
                None => bad(keys::LOCAL_ADDRESS, "one or two IP addresses, separated by a comma"),
            },
            // Read elsewhere, or written by us.
            keys::INJECT | keys::STATUS | keys::REVISION => {}
            keys::ROLLOUT if place == Place::Namespace => {}
            other => warnings.push(Warning::UnknownAnnotation { place, key: other.to_owned() }),
        }
    }
    overrides
}

/// The share of workloads that the namespace asks for.
pub(super) fn rollout(namespace: &Namespace, warnings: &mut Vec<Warning>) -> Option<Share> {
    let value = namespace.annotations.get(keys::ROLLOUT)?;
    let share = value.parse().ok();
    if share.is_none() {
        let (place, key, value) = (Place::Namespace, keys::ROLLOUT, value.clone());
        warnings.push(Warning::BadValue { place, key, value, allowed: ALLOWED_SHARES });
    }
    share
}

/// Whether the address can be a nameserver's: neither "any" nor for many.
#[must_use]
pub(crate) fn is_usable(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

fn local_addresses(text: &str) -> Option<Vec<IpAddr>> {
    let addresses = list::<IpAddr>(text)?;
    let usable = addresses.len() <= MAX_LOCAL_ADDRESSES && addresses.iter().all(is_usable);
    usable.then_some(addresses)
}

/// Parts between commas or blanks; at least one, and all of them good.
fn list<T: FromStr>(text: &str) -> Option<Vec<T>> {
    let parts = text.split([',', ' ', '\n', '\t']).filter(|part| !part.is_empty());
    let parts: Vec<T> = parts.map(|part| part.parse().ok()).collect::<Option<_>>()?;
    (!parts.is_empty()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(key: &str, value: &str) -> (Overrides, Vec<Warning>) {
        let mut warnings = Vec::new();
        let overrides = read([(key, value)].into_iter(), Place::Pod, &mut warnings);
        (overrides, warnings)
    }

    #[test]
    fn ignores_a_bad_value_and_says_what_is_allowed() {
        let cases = [
            (keys::NDOTS, "sixteen", "0 to 15"),
            (keys::NDOTS, "16", "0 to 15"),
            (keys::NDOTS, "", "0 to 15"),
            (keys::OPTIONS, "timeout:1,nonsense", "timeout:1-30"),
            (keys::SEARCHES, "good.example,bad_one", "domain names"),
            (keys::SEARCHES, " ", "domain names"),
            (keys::FALLBACK, "google", "cluster, auto, none"),
            (keys::LOCAL_ADDRESS, "localhost", "IP addresses"),
            (keys::LOCAL_ADDRESS, "0.0.0.0", "IP addresses"),
            (keys::LOCAL_ADDRESS, "169.254.20.10:53", "IP addresses"),
            (keys::LOCAL_ADDRESS, "10.0.0.1,10.0.0.2,10.0.0.3", "IP addresses"),
        ];
        for (key, value, allowed) in cases {
            let (overrides, warnings) = read_one(key, value);
            assert_eq!(overrides, Overrides::default(), "{key}: {value}");
            let text = warnings[0].text();
            assert!(warnings.len() == 1 && text.contains(key) && text.contains(allowed), "{text}");
            assert_eq!(warnings[0].bad_key(), Some(key));
        }
    }

    #[test]
    fn warns_of_annotations_that_do_not_exist_and_leaves_others_alone() {
        let (_, warnings) = read_one("nodestub.io/ndot", "2");
        assert_eq!(warnings[0].label(), "unknown_annotation");
        assert!(read_one("example.com/ndots", "2").1.is_empty());
        for key in keys::ANNOTATIONS {
            let (_, warnings) = read_one(key, "");
            assert!(warnings.iter().all(|warning| warning.label() != "unknown_annotation"), "{key}");
        }
    }
}
