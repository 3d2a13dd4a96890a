//! How we know again what a process of ours made before.
//!
//! | what | mark | since Linux |
//! | --- | --- | --- |
//! | an address, both families | `IFA_PROTO` = [`ADDRESS_PROTOCOL`], "who added this" (`proto 0x35` in `ip addr`) | 5.18 |
//! | an IPv4 address on `lo` | the label [`LOOPBACK_LABEL`] as well | ever |
//! | a device | type dummy and the alias [`DEVICE_ALIAS`], or our default name | ever |
//!
//! The kernel keeps `IFA_PROTO` and hands it back, and nothing else goes by it: made for this. Older kernels ignore it
//! when an address is added. There an IPv4 address on `lo` is known by its label, and what is on a device of our own by
//! its full prefix; only an IPv6 address on `lo` is then not known again (a kernel as old as that has type dummy).
//! A metric (`IFA_RT_PRIORITY`) would go back to 4.18, but it is a route's, and changes one.

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};

/// Of DNS, port 53. Linux itself uses 0 to 3.
pub(super) const ADDRESS_PROTOCOL: u8 = 53;
/// In the form of an alias of the device, as `ip` asks for it; at most 15 octets.
pub(super) const LOOPBACK_LABEL: &str = "lo:nodestub";
/// What `ip link` shows as the device's alias.
pub(super) const DEVICE_ALIAS: &str = "nodestub: local address for DNS";

/// Marks an address that is about to be added.
pub(super) fn mark(message: &mut AddressMessage, on_loopback: bool, is_ipv4: bool) {
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL)));
    if on_loopback && is_ipv4 {
        message.attributes.push(AddressAttribute::Label(LOOPBACK_LABEL.to_owned()));
    }
}

/// Whether an address bears our mark.
pub(super) fn is_marked(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Protocol(protocol) => u8::from(*protocol) == ADDRESS_PROTOCOL,
        AddressAttribute::Label(label) => label == LOOPBACK_LABEL,
        _ => false,
    })
}

/// Whether this kernel keeps `IFA_PROTO`: it then has one of its own on the addresses of `lo`.
pub(super) fn keeps_protocols<'list>(mut all: impl Iterator<Item = &'list AddressMessage>) -> bool {
    let has = |message: &AddressMessage| {
        message.attributes.iter().any(|attribute| matches!(attribute, AddressAttribute::Protocol(_)))
    };
    all.any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_marks_again_and_nobody_elses() {
        for (on_loopback, is_ipv4) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut message = AddressMessage::default();
            assert!(!is_marked(&message));
            mark(&mut message, on_loopback, is_ipv4);
            assert!(is_marked(&message));
        }
        let mut foreign = AddressMessage::default();
        foreign.attributes = vec![
            AddressAttribute::Protocol(AddressProtocol::Loopback),
            AddressAttribute::Label("lo".to_owned()),
        ];
        assert!(!is_marked(&foreign));
        assert!(keeps_protocols([&foreign].into_iter()));
        assert!(!keeps_protocols([&AddressMessage::default()].into_iter()));
    }

    #[test]
    fn knows_an_old_kernels_address_on_lo_by_its_label() {
        let mut message = AddressMessage::default();
        mark(&mut message, true, true);
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Protocol(_)));
        assert!(is_marked(&message));
    }
}
