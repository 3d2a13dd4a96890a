//! What is seen of clients over TLS. Where no address is served so, the page says nothing of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::text::Page;
use crate::listen::Shared;
use crate::tables::Tables;

/// Writes it; files of certificates are the Corefile's, so that their number is bounded by it.
pub(super) fn write(page: &mut Page, shared: &Shared, tables: &Tables) {
    let mut served: Vec<_> =
        tables.listeners.values().filter_map(|zones| zones.certificates.as_ref()).collect();
    if served.is_empty() {
        return;
    }
    served.sort_by_key(|certificates| Arc::as_ptr(certificates));
    served.dedup_by_key(|certificates| Arc::as_ptr(certificates));
    let handshakes = &shared.handshakes;
    let name = "nodestub_tls_handshakes_total";
    let help = "Handshakes with clients over TLS: full (a new session), resumed, failed, timed_out.";
    page.family(name, "counter", help);
    for (result, count) in [
        ("failed", &handshakes.failed),
        ("full", &handshakes.full),
        ("resumed", &handshakes.resumed),
        ("timed_out", &handshakes.timed_out),
    ] {
        page.sample(name, &[("result", &result)], count.get());
    }
    let help = "Handshakes with clients over TLS that are under way, now.";
    page.single("nodestub_tls_handshakes_under_way", "gauge", help, handshakes.under_way.load(Relaxed));
    let help = "Connections of clients over TLS that are through their handshake, now.";
    page.single("nodestub_tls_connections", "gauge", help, handshakes.connections.load(Relaxed));

    // Two `tls` may name the same file, and differ otherwise.
    let mut by_file: BTreeMap<String, (u64, u64, bool)> = BTreeMap::new();
    for certificates in served {
        let (renewed, refused, outdated) =
            by_file.entry(certificates.file().display().to_string()).or_default();
        *renewed += certificates.renewed.get();
        *refused += certificates.refused.get();
        *outdated |= certificates.is_outdated();
    }
    let name = "nodestub_tls_certificate_changes_total";
    let help = "Changes of a certificate for clients, its key or its authorities: served, or refused.";
    page.family(name, "counter", help);
    for (file, (renewed, refused, _)) in &by_file {
        page.sample(name, &[("file", file), ("result", &"refused")], refused);
        page.sample(name, &[("file", file), ("result", &"served")], renewed);
    }
    let name = "nodestub_tls_certificate_outdated";
    let help =
        "1 while a certificate for clients is served whose files hold something that cannot be served.";
    page.family(name, "gauge", help);
    for (file, (.., outdated)) in &by_file {
        page.sample(name, &[("file", file)], u8::from(*outdated));
    }
}
