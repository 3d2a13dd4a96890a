//! The pair of devices by which our own questions come in as a pod's do: a veth pair with both ends in this namespace.
//!
//! ```text
//! socket ─▶ nodestub-ask ═══ nodestub-hear ─▶ prerouting: as if a pod had asked
//! ```
//!
//! * **No ARP, no neighbours**: both ends are NOARP and have one hardware address, so each frame is for who hears it.
//! * **`accept_local`, no `rp_filter`** on the hearing end, because the questions come from an address of this node. Set by
//!   netlink, since a container's /proc/sys is read-only.
//! * **A loopback address on the hearing end**: without one the kernel takes a loose `rp_filter` of all devices (the
//!   default of several distributions) for a strict one. It is scope host, so nobody takes it for an address of the node.
//! * **No IPv6 link-local addresses**: nobody is to find neighbours or routers there.
//!
//! The pair stays between questions and over the end of the process: making and taking away a device each minute would be
//! told to udev, NetworkManager and every network plugin, each time. It is known again by its names and the alias, put right
//! before each question, and taken away by `cleanup`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Obstacle;
use crate::desired::{ASK_DEVICE, HEAR_DEVICE};
use crate::link::{Error as LinkError, Netlink, errno};

/// Of both ends; locally administered.
const HARDWARE_ADDRESS: [u8; 6] = [0x02, 0x6e, 0x73, 0x00, 0x00, 0x35];
/// What `ip link` shows as the alias of both.
const ALIAS: &str = "nodestub: to try fail-open";
/// See the module's comment.
const HEAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 53, 20, 10);

// linux/if_link.h and linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;

/// The indexes of both ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) ask: u32,
    hear: u32,
}

/// Finds or makes the pair, and puts right what is not as it should be. What is so already is not touched.
pub(super) async fn ensure(handle: &Handle) -> Result<Pair, Obstacle> {
    if let Some(pair) = find(handle).await? {
        return Ok(pair);
    }
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(HEAR_DEVICE)
        .address(HARDWARE_ADDRESS.to_vec())
        .arp(false)
        .build();
    let message = LinkVeth::new(ASK_DEVICE, HEAR_DEVICE)
        .address(HARDWARE_ADDRESS.to_vec())
        .arp(false)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    match handle.link().add(message).execute().await {
        // Another process of ours may have been faster.
        Err(error) if errno(&error) == Some(libc::EEXIST) => {}
        Err(error) if matches!(errno(&error), Some(libc::EOPNOTSUPP | libc::ENODEV)) => {
            return Err(Obstacle::NoVeth);
        }
        result => result.map_err(|cause| netlink("make the pair of devices", cause))?,
    }
    find(handle).await?.ok_or_else(|| LinkError::Missing(format!("device {ASK_DEVICE}")).into())
}

/// Takes the pair away. Returns whether there was one; a device of that name that is not ours is left alone.
pub(super) async fn remove() -> Result<bool, LinkError> {
    let netlink = Netlink::open()?;
    match link(&netlink.handle, ASK_DEVICE).await? {
        Some(found) if is_ours(&found) => delete(&netlink.handle, &found).await,
        _ => Ok(false),
    }
}

/// Both ends go together.
async fn delete(handle: &Handle, ask: &LinkMessage) -> Result<bool, LinkError> {
    match handle.link().del(ask.header.index).execute().await {
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(false),
        result => {
            let step = || format!("remove device {ASK_DEVICE}");
            result.map(|()| true).map_err(|cause| LinkError::netlink(step(), cause))
        }
    }
}

async fn find(handle: &Handle) -> Result<Option<Pair>, Obstacle> {
    let Some(ask) = link(handle, ASK_DEVICE).await? else { return Ok(None) };
    if !is_ours(&ask) {
        return Err(Obstacle::ForeignDevice(ASK_DEVICE));
    }
    let Some(hear) = link(handle, HEAR_DEVICE).await? else {
        // Renamed, or moved to another namespace: not a pair any more.
        delete(handle, &ask).await?;
        return Ok(None);
    };
    if !is_ours(&hear) {
        return Err(Obstacle::ForeignDevice(HEAR_DEVICE));
    }
    for (name, found) in [(ASK_DEVICE, &ask), (HEAR_DEVICE, &hear)] {
        prepare(handle, name, found).await?;
    }
    Ok(Some(Pair { ask: ask.header.index, hear: hear.header.index }))
}

/// Brings one end into the state that the module's comment describes, and up.
async fn prepare(handle: &Handle, name: &str, found: &LinkMessage) -> Result<(), Obstacle> {
    let index = found.header.index;
    let step = || format!("set up device {name}");
    let set = async |message: LinkMessage| {
        let result = handle.link().set(message).execute().await;
        result.map_err(|cause| Obstacle::from(LinkError::netlink(step(), cause)))
    };
    let hears = name == HEAR_DEVICE;
    let specification = missing_settings(found, hears);
    if !specification.is_empty() {
        let mut message = LinkUnspec::new_with_index(index).build();
        message.attributes.push(LinkAttribute::AfSpecUnspec(specification));
        set(message).await?;
    }
    let hardware_address = has_hardware_address(found);
    if !hardware_address
        || !is_marked(found)
        || !found.header.flags.contains(LinkFlags::Noarp | LinkFlags::Up)
    {
        let change = LinkUnspec::new_with_index(index).arp(false).alias(ALIAS).up();
        let change = if hardware_address { change } else { change.address(HARDWARE_ADDRESS.to_vec()) };
        set(change.build()).await?;
    }
    if hears {
        let mut request = handle.address().add(index, HEAR_ADDRESS.into(), 32);
        request.message_mut().header.scope = AddressScope::Host;
        match request.execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                return Err(LinkError::netlink(format!("add {HEAR_ADDRESS} to {name}"), error).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// What of the families' settings is not as it should be.
fn missing_settings(found: &LinkMessage, hears: bool) -> Vec<AfSpecUnspec> {
    let mut missing = Vec::new();
    let families = found.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => Some(families),
        _ => None,
    });
    for family in families.flatten() {
        match family {
            AfSpecUnspec::Inet(parts) if hears => {
                let right = parts.iter().any(|part| match part {
                    AfSpecInet::DevConf(conf) => conf.accept_local == 1 && conf.rp_filter == 0,
                    _ => false,
                });
                if !right {
                    missing.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(accept_our_own())]));
                }
            }
            AfSpecUnspec::Inet6(parts) => {
                let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
                if !parts.contains(&none) {
                    missing.push(AfSpecUnspec::Inet6(vec![none]));
                }
            }
            _ => {}
        }
    }
    missing
}

/// `IFLA_INET_CONF` with two settings: each an attribute of its own. (The crate's own form leaves out zeros.)
fn accept_our_own() -> DefaultNla {
    let mut octets = Vec::new();
    for (kind, value) in [(IPV4_DEVCONF_RP_FILTER, 0_u32), (IPV4_DEVCONF_ACCEPT_LOCAL, 1)] {
        octets.extend(8_u16.to_ne_bytes());
        octets.extend(kind.to_ne_bytes());
        octets.extend(value.to_ne_bytes());
    }
    DefaultNla::new(IFLA_INET_CONF, octets)
}

/// A route by the asking end, for as long as a question to an IPv6 address is under way: there the kernel does not take a
/// destination without a route for one on the link. The local route of the address comes before it for everybody else.
#[derive(Debug)]
pub(super) struct Route {
    message: RouteMessage,
}

impl Route {
    pub(super) async fn add(handle: &Handle, pair: Pair, to: Ipv6Addr) -> Result<Self, Obstacle> {
        let message = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, 128)
            .output_interface(pair.ask)
            .build();
        match handle.route().add(message.clone()).execute().await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            result => result.map_err(|cause| netlink("add the route of our own question", cause))?,
        }
        Ok(Self { message })
    }

    /// What is gone already is no error, and what stays goes with the device.
    pub(super) async fn remove(self, handle: &Handle) {
        if let Err(error) = handle.route().del(self.message).execute().await
            && errno(&error) != Some(libc::ESRCH)
        {
            tracing::debug!(%error, "the route of our own question stays until the next one");
        }
    }
}

impl Pair {
    /// Whether this device is one of the two.
    pub(super) fn has(self, index: u32) -> bool {
        index == self.ask || index == self.hear
    }
}

/// The addresses of the node's devices other than ours, loopback, and dummies (`kube-ipvs0` among them): such as others
/// answer to.
pub(super) async fn node_addresses(handle: &Handle, pair: Pair) -> Result<Vec<IpAddr>, Obstacle> {
    let step = "list the node's addresses";
    let mut usable = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(found) = links.try_next().await.map_err(|cause| netlink(step, cause))? {
        let kind_is_dummy = kinds(&found).any(|kind| *kind == InfoKind::Dummy);
        let loopback = found.header.flags.contains(LinkFlags::Loopback);
        if found.header.flags.contains(LinkFlags::Up)
            && !loopback
            && !kind_is_dummy
            && !pair.has(found.header.index)
        {
            usable.push(found.header.index);
        }
    }
    let mut addresses = Vec::new();
    let mut all = handle.address().get().execute();
    while let Some(found) = all.try_next().await.map_err(|cause| netlink(step, cause))? {
        if found.header.scope != AddressScope::Universe || !usable.contains(&found.header.index) {
            continue;
        }
        let own = found.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = own.or_else(|| {
            found.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        addresses.extend(address);
    }
    Ok(addresses)
}

async fn link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, LinkError> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(cause) => Err(LinkError::netlink(format!("look for device {name}"), cause)),
    }
}

/// Made by us, now or in a former life. The mark is set a moment after the device is made, and its address with it.
fn is_ours(found: &LinkMessage) -> bool {
    kinds(found).any(|kind| *kind == InfoKind::Veth) && (is_marked(found) || has_hardware_address(found))
}

fn is_marked(found: &LinkMessage) -> bool {
    found.attributes.contains(&LinkAttribute::IfAlias(ALIAS.to_owned()))
}

fn has_hardware_address(found: &LinkMessage) -> bool {
    found.attributes.contains(&LinkAttribute::Address(HARDWARE_ADDRESS.to_vec()))
}

fn kinds(found: &LinkMessage) -> impl Iterator<Item = &InfoKind> {
    let infos = found.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().filter_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn netlink(step: &str, cause: rtnetlink::Error) -> Obstacle {
    LinkError::netlink(step.to_owned(), cause).into()
}
