//! The local addresses on a device of our own.
//!
//! The device is of type dummy and up. A kernel without that type gets the addresses on `lo`, which serves as well
//! (the node answers for any address it has, whichever device carries it) and is said in a log line.
//!
//! Invariants:
//!
//! 1. What was there before is left alone: other addresses on the device, and a device or address that we found.
//! 2. What is removed is what this value made: [`Link`] remembers it.
//! 3. An address that another device carries is never added a second time: somebody else serves it (another node
//!    cache, or `kube-ipvs0`), and two owners would take it from each other.

use std::fmt;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkDummy, LinkUnspec};

use crate::desired::Desired;

/// The device that every network namespace has.
const LOOPBACK: &str = "lo";
/// Devices in the namespace that we look through; a node has one for each pod, and some.
const MAX_DEVICES: usize = 65_536;

/// Brings device and addresses into being. On a failure, what this call made is taken away again.
pub async fn apply(desired: &Desired) -> Result<Link, Error> {
    let netlink = Netlink::open()?;
    let mut link = Link {
        device: desired.device().to_owned(),
        addresses: desired.addresses().to_vec(),
        made_device: false,
        made_addresses: Vec::new(),
    };
    match link.make(&netlink.handle).await {
        Ok(()) => Ok(link),
        Err(error) => {
            if let Err(left) = link.take_away(&netlink.handle).await {
                tracing::warn!(error = %left, "the local address could not be taken back after a failure");
            }
            Err(error)
        }
    }
}

/// The device and addresses as applied, and which of them are ours to remove.
#[derive(Debug)]
pub struct Link {
    device: String,
    addresses: Vec<IpAddr>,
    made_device: bool,
    made_addresses: Vec<IpAddr>,
}

impl Link {
    /// The device that carries the addresses: as desired, or `lo`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Whether device and addresses are there, and the device up.
    pub async fn verify(&self) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let Some(device) = find(&devices(&netlink.handle).await?, &self.device).cloned() else {
            return Err(Error::Missing(format!("device {}", self.device)));
        };
        if !device.is_up {
            return Err(Error::Missing(format!("device {} is down; it being up", self.device)));
        }
        let carried = addresses(&netlink.handle).await?;
        for address in &self.addresses {
            if !carried.iter().any(|one| one.device == device.index && one.address == *address) {
                return Err(Error::Missing(format!("address {address} on {}", self.device)));
            }
        }
        Ok(())
    }

    /// Takes away what was made. What is already gone is no error.
    pub async fn remove(mut self) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        self.take_away(&netlink.handle).await
    }

    async fn make(&mut self, handle: &Handle) -> Result<(), Error> {
        let index = self.make_device(handle).await?;
        let known = devices(handle).await?;
        for address in self.addresses.clone() {
            // Asked anew for each: the list may have changed by an addition before.
            let carried = addresses(handle).await?;
            let owners: Vec<u32> =
                carried.iter().filter(|one| one.address == address).map(|one| one.device).collect();
            if owners.contains(&index) {
                continue;
            }
            if let Some(owner) = owners.first() {
                let owner = known.iter().find(|device| device.index == *owner);
                let device = owner.map_or_else(|| "another device".to_owned(), |device| device.name.clone());
                return Err(Error::Taken { address, device });
            }
            self.add(handle, index, address).await?;
        }
        Ok(())
    }

    /// Finds or makes the device and brings it up. Returns its index.
    async fn make_device(&mut self, handle: &Handle) -> Result<u32, Error> {
        if find(&devices(handle).await?, &self.device).is_none() {
            let made = handle.link().add(LinkDummy::new(&self.device).build()).execute().await;
            match made {
                Ok(()) => self.made_device = true,
                // Somebody made it between our look and now; the look below judges it.
                Err(error) if errno(&error) == Some(libc::EEXIST) => {}
                Err(error) if matches!(errno(&error), Some(libc::EOPNOTSUPP | libc::ENODEV)) => {
                    tracing::info!(
                        wanted = self.device,
                        device = LOOPBACK,
                        "this kernel has no device type dummy; the local address goes on lo"
                    );
                    LOOPBACK.clone_into(&mut self.device);
                }
                Err(cause) => return Err(Error::netlink(format!("make device {}", self.device), cause)),
            }
        }
        let known = devices(handle).await?;
        let Some(found) = find(&known, &self.device) else {
            return Err(Error::Missing(format!("device {}", self.device)));
        };
        if !found.is_dummy && found.name != LOOPBACK {
            return Err(Error::ForeignDevice(self.device.clone()));
        }
        if !found.is_up {
            let up = LinkUnspec::new_with_index(found.index).up().build();
            let result = handle.link().set(up).execute().await;
            result.map_err(|cause| Error::netlink(format!("bring device {} up", self.device), cause))?;
        }
        Ok(found.index)
    }

    async fn add(&mut self, handle: &Handle, index: u32, address: IpAddr) -> Result<(), Error> {
        let mut request = handle.address().add(index, address, full_prefix(address));
        if address.is_ipv6() {
            // Nobody else can have it, and an address under detection could not be bound for a second.
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match request.execute().await {
            Ok(()) => {
                self.made_addresses.push(address);
                Ok(())
            }
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(()),
            Err(cause) => Err(Error::netlink(format!("add {address} to {}", self.device), cause)),
        }
    }

    /// Every part is tried; the first error is returned.
    async fn take_away(&mut self, handle: &Handle) -> Result<(), Error> {
        let Some(device) = find(&devices(handle).await?, &self.device).cloned() else { return Ok(()) };
        let mut first_error = None;
        let mut note = |step: String, result: Result<(), rtnetlink::Error>| {
            let gone = [libc::ENODEV, libc::EADDRNOTAVAIL];
            if let Err(cause) = result
                && !errno(&cause).is_some_and(|code| gone.contains(&code))
            {
                first_error.get_or_insert(Error::netlink(step, cause));
            }
        };
        for one in addresses(handle).await? {
            if one.device == device.index
                && self.made_addresses.contains(&one.address)
                && one.message.header.prefix_len == full_prefix(one.address)
            {
                let result = handle.address().del(one.message).execute().await;
                note(format!("remove {} from {}", one.address, self.device), result);
            }
        }
        self.made_addresses.clear();
        if self.made_device && device.is_dummy {
            // Somebody may have put an address of theirs on it meanwhile; then the device is no longer ours alone.
            let mut left = addresses(handle).await?.into_iter();
            if left.any(|one| one.device == device.index && !is_automatic(one.address)) {
                tracing::info!(device = self.device, "left in place: it carries addresses that are not ours");
            } else {
                note(
                    format!("remove device {}", self.device),
                    handle.link().del(device.index).execute().await,
                );
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Why the device or an address is not as desired.
#[derive(Debug)]
pub enum Error {
    /// The rtnetlink socket could not be opened.
    Socket(std::io::Error),
    /// The kernel refused a step.
    Netlink {
        /// What was tried.
        step: String,
        /// The kernel's word.
        cause: rtnetlink::Error,
    },
    /// The device's name belongs to a device of another type.
    ForeignDevice(String),
    /// Another device carries the address already.
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        device: String,
    },
    /// Something that should be there is not.
    Missing(String),
    /// More devices than we look through.
    TooManyDevices,
}

impl Error {
    /// What the operator can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Netlink { cause, .. } => match errno(cause)? {
                libc::EPERM => Some(crate::NEEDS_NET_ADMIN),
                libc::EACCES => Some("IPv6 is switched off here: see sysctl net.ipv6.conf.all.disable_ipv6"),
                _ => None,
            },
            Self::ForeignDevice(_) => Some("choose another name for the device, or remove that one"),
            Self::Taken { device, .. } if device == "kube-ipvs0" => {
                Some("kube-proxy in IPVS mode owns service addresses: use a local address only")
            }
            Self::Taken { .. } => {
                Some("another node cache seems to run here: remove it, or choose another address")
            }
            _ => None,
        }
    }

    fn netlink(step: String, cause: rtnetlink::Error) -> Self {
        Self::Netlink { step, cause }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(cause) => write!(f, "open an rtnetlink socket: {cause}"),
            Self::Netlink { step, cause: rtnetlink::Error::NetlinkError(message) } => {
                write!(f, "{step}: {message}")
            }
            Self::Netlink { step, cause } => write!(f, "{step}: {cause}"),
            Self::ForeignDevice(name) => write!(f, "device {name} exists and is not of type dummy"),
            Self::Taken { address, device } => write!(f, "{address} is already on device {device}"),
            Self::Missing(what) => write!(f, "missing: {what}"),
            Self::TooManyDevices => write!(f, "more than {MAX_DEVICES} network devices"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket(cause) => Some(cause),
            Self::Netlink { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

/// An rtnetlink conversation; its task ends with it.
struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Clone)]
struct Device {
    index: u32,
    name: String,
    is_up: bool,
    is_dummy: bool,
}

struct Carried {
    device: u32,
    address: IpAddr,
    message: AddressMessage,
}

async fn devices(handle: &Handle) -> Result<Vec<Device>, Error> {
    let step = || "list the devices".to_owned();
    let mut stream = handle.link().get().execute();
    let mut found = Vec::new();
    while let Some(message) = stream.try_next().await.map_err(|cause| Error::netlink(step(), cause))? {
        if found.len() == MAX_DEVICES {
            return Err(Error::TooManyDevices);
        }
        found.push(device(&message));
    }
    Ok(found)
}

fn device(message: &LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_dummy: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::LinkInfo(infos) => {
                device.is_dummy = infos.contains(&LinkInfo::Kind(InfoKind::Dummy));
            }
            _ => {}
        }
    }
    device
}

fn find<'list>(devices: &'list [Device], name: &str) -> Option<&'list Device> {
    devices.iter().find(|device| device.name == name)
}

async fn addresses(handle: &Handle) -> Result<Vec<Carried>, Error> {
    let list = handle.address().get().execute().try_collect::<Vec<_>>().await;
    let list = list.map_err(|cause| Error::netlink("list the addresses".to_owned(), cause))?;
    Ok(list
        .into_iter()
        .filter_map(|message| {
            // On a point-to-point device IFA_ADDRESS is the peer; IFA_LOCAL, where there is one, is the node's.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = local.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })?;
            Some(Carried { device: message.header.index, address, message })
        })
        .collect())
}

/// The link-local address that Linux gives every device by itself.
fn is_automatic(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The positive errno of a refusal.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().saturating_abs()),
        _ => None,
    }
}
