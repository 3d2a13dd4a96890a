//! The local addresses on a device of our own.
//!
//! The device is of type dummy and up. A kernel without that type gets the addresses on `lo`, which serves as well
//! (the node answers for any address it has, whichever device carries it) and is said in a log line.
//!
//! Invariants:
//!
//! 1. What others made is left alone: their addresses on the device, and a device or address that we found without our
//!    mark (`mark.rs`).
//! 2. What bears our mark is ours, whichever process made it: found again after a crash it is adopted, and taken away
//!    where it is no longer wished.
//! 3. An address that another device carries, and not by us, is never added a second time: somebody else serves it
//!    (another node cache, or `kube-ipvs0`), and two owners would take it from each other.

mod mark;

use std::fmt;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkDummy, LinkUnspec};

use crate::desired::{DEFAULT_DEVICE, Desired};

/// The device that every network namespace has.
const LOOPBACK: &str = "lo";
/// Devices in the namespace that we look through; a node has one for each pod, and some.
const MAX_DEVICES: usize = 65_536;

/// Brings device and addresses into being, and takes away ours that are no longer wished. On a failure, what this call
/// made is taken away again.
pub async fn apply(desired: &Desired) -> Result<Link, Error> {
    let netlink = Netlink::open()?;
    let handle = &netlink.handle;
    let mut link = Link {
        device: desired.device().to_owned(),
        device_is_ours: false,
        addresses: desired.addresses().to_vec(),
        ours: Vec::new(),
    };
    let mut made = Made::default();
    match link.make(handle, &mut made).await {
        Ok(index) => {
            sweep(handle, Some((index, &link.addresses))).await?;
            Ok(link)
        }
        Err(error) => {
            link.ours = made.addresses;
            link.device_is_ours = made.device;
            if let Err(left) = link.take_away(handle).await {
                tracing::warn!(error = %left, "the local address could not be taken back after a failure");
            }
            Err(error)
        }
    }
}

/// Takes away every device and address that a process of ours ever made and left. What is not there is no error.
pub async fn cleanup() -> Result<Swept, Error> {
    let netlink = Netlink::open()?;
    sweep(&netlink.handle, None).await
}

/// What [`cleanup`] found of ours.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Addresses that were taken away, with the names of their devices.
    pub addresses: Vec<(IpAddr, String)>,
    /// Devices that were taken away.
    pub devices: Vec<String>,
    /// Devices of ours that stay: they carry addresses that are not ours.
    pub left: Vec<String>,
}

/// Those of the wished addresses that another device carries, and not by us, with its name: [`apply`] would refuse them.
/// Needs no capability.
pub async fn taken(desired: &Desired) -> Result<Vec<(IpAddr, String)>, Error> {
    let netlink = Netlink::open()?;
    let known = devices(&netlink.handle).await?;
    let carried = addresses(&netlink.handle).await?;
    let ours = Ours::new(&known, &carried);
    let is_elsewhere = |one: &&Carried| {
        desired.addresses().contains(&one.address)
            && name_of(&known, one.device) != desired.device()
            && !ours.has(one)
    };
    Ok(carried.iter().filter(is_elsewhere).map(|one| (one.address, name_of(&known, one.device))).collect())
}

/// Index and name of the devices that have no type of their own, `lo` left out: hardware. Others are made by somebody, as those of pods.
pub(crate) async fn hardware() -> Result<Vec<(u32, String)>, Error> {
    let netlink = Netlink::open()?;
    let known = devices(&netlink.handle).await?;
    let hardware = known.into_iter().filter(|device| device.is_hardware && device.name != LOOPBACK);
    Ok(hardware.map(|device| (device.index, device.name)).collect())
}

/// The device and addresses as applied, and which of them are ours to remove.
#[derive(Debug)]
pub struct Link {
    device: String,
    device_is_ours: bool,
    addresses: Vec<IpAddr>,
    /// Those of the addresses that we made, now or in a former life.
    ours: Vec<IpAddr>,
}

/// What one call has made.
#[derive(Default)]
struct Made {
    device: bool,
    addresses: Vec<IpAddr>,
}

impl Link {
    /// The device that carries the addresses: as desired, or `lo`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The addresses that it should carry.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether device and addresses are there, the device up, and no other device has one of them too.
    pub async fn verify(&self) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let known = devices(&netlink.handle).await?;
        let Some(device) = find(&known, &self.device) else {
            return Err(Error::Missing(format!("device {}", self.device)));
        };
        if !device.is_up {
            return Err(Error::Missing(format!("device {} is down; it being up", self.device)));
        }
        let carried = addresses(&netlink.handle).await?;
        for address in &self.addresses {
            let owners: Vec<u32> =
                carried.iter().filter(|one| one.address == *address).map(|one| one.device).collect();
            if !owners.contains(&device.index) {
                return Err(Error::Missing(format!("address {address} on {}", self.device)));
            }
            if let Some(other) = owners.iter().find(|owner| **owner != device.index) {
                return Err(Error::Taken { address: *address, device: name_of(&known, *other) });
            }
        }
        Ok(())
    }

    /// Takes away what is ours. What is already gone is no error.
    pub async fn remove(self) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        self.take_away(&netlink.handle).await
    }

    /// Returns the device's index.
    async fn make(&mut self, handle: &Handle, made: &mut Made) -> Result<u32, Error> {
        let index = self.make_device(handle, made).await?;
        let known = devices(handle).await?;
        for address in self.addresses.clone() {
            // Asked anew for each: the list may have changed by an addition before.
            let carried = addresses(handle).await?;
            let ours = Ours::new(&known, &carried);
            let mut owners = carried.iter().filter(|one| one.address == address);
            if let Some(found) = owners.clone().find(|one| one.device == index) {
                if ours.has(found) {
                    self.ours.push(address);
                }
                continue;
            }
            // One of ours on another device moves: it is added here, and swept there.
            if let Some(owner) = owners.find(|one| !ours.has(one)) {
                return Err(Error::Taken { address, device: name_of(&known, owner.device) });
            }
            if self.add(handle, index, address).await? {
                made.addresses.push(address);
                self.ours.push(address);
            }
        }
        Ok(index)
    }

    /// Finds or makes the device and brings it up. Returns its index.
    async fn make_device(&mut self, handle: &Handle, made: &mut Made) -> Result<u32, Error> {
        if find(&devices(handle).await?, &self.device).is_none() {
            let result = handle.link().add(LinkDummy::new(&self.device).build()).execute().await;
            match result {
                Ok(()) => made.device = true,
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
        self.device_is_ours = made.device || found.is_ours();
        if !found.is_up || (self.device_is_ours && !found.is_marked) {
            let mut change = LinkUnspec::new_with_index(found.index).up();
            if self.device_is_ours {
                change = change.alias(mark::DEVICE_ALIAS);
            }
            let result = handle.link().set(change.build()).execute().await;
            result.map_err(|cause| Error::netlink(format!("bring device {} up", self.device), cause))?;
        }
        Ok(found.index)
    }

    /// Adds an address with our mark. Returns false where somebody was faster.
    async fn add(&self, handle: &Handle, index: u32, address: IpAddr) -> Result<bool, Error> {
        let mut request = handle.address().add(index, address, full_prefix(address));
        mark::mark(request.message_mut(), self.device == LOOPBACK, address.is_ipv4());
        if address.is_ipv6() {
            // Nobody else can have it, and an address under detection could not be bound for a second.
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match request.execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(false),
            Err(cause) => Err(Error::netlink(format!("add {address} to {}", self.device), cause)),
        }
    }

    /// Every part is tried; the first error is returned.
    async fn take_away(&self, handle: &Handle) -> Result<(), Error> {
        let Some(device) = find(&devices(handle).await?, &self.device).cloned() else { return Ok(()) };
        let mut first_error = None;
        for one in addresses(handle).await? {
            if one.device == device.index
                && self.ours.contains(&one.address)
                && one.message.header.prefix_len == full_prefix(one.address)
            {
                note(&mut first_error, delete_address(handle, one, &device.name).await);
            }
        }
        if self.device_is_ours && device.is_dummy {
            note(&mut first_error, delete_device(handle, &device).await.map(drop));
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Takes away all that is ours, but for the addresses that are wished on the device with this index, and for that device.
/// Every part is tried; the first error is returned.
async fn sweep(handle: &Handle, keep: Option<(u32, &[IpAddr])>) -> Result<Swept, Error> {
    let known = devices(handle).await?;
    let carried = addresses(handle).await?;
    let ours = Ours::new(&known, &carried);
    let kept = |one: &Carried| {
        keep.is_some_and(|(index, wished)| one.device == index && wished.contains(&one.address))
    };
    let doomed: Vec<bool> = carried.iter().map(|one| ours.has(one) && !kept(one)).collect();
    let mut swept = Swept::default();
    let mut first_error = None;
    for (one, doomed) in carried.into_iter().zip(doomed) {
        if !doomed {
            continue;
        }
        let (address, device) = (one.address, name_of(&known, one.device));
        let result = delete_address(handle, one, &device).await;
        if result.is_ok() {
            swept.addresses.push((address, device));
        }
        note(&mut first_error, result);
    }
    for device in &known {
        if !device.is_ours() || keep.is_some_and(|(index, _)| index == device.index) {
            continue;
        }
        match delete_device(handle, device).await {
            Ok(true) => swept.devices.push(device.name.clone()),
            Ok(false) => swept.left.push(device.name.clone()),
            Err(error) => note(&mut first_error, Err(error)),
        }
    }
    first_error.map_or(Ok(swept), Err)
}

/// Tells our addresses from others'.
struct Ours<'list> {
    devices: &'list [Device],
    /// Without, an address on a device of our own is known by its prefix.
    marks_are_kept: bool,
}

impl<'list> Ours<'list> {
    fn new(devices: &'list [Device], carried: &[Carried]) -> Self {
        Self { devices, marks_are_kept: mark::keeps_protocols(carried.iter().map(|one| &one.message)) }
    }

    fn has(&self, one: &Carried) -> bool {
        let on_our_device =
            || self.devices.iter().any(|device| device.index == one.device && device.is_ours());
        mark::is_marked(&one.message)
            || (!self.marks_are_kept
                && one.message.header.prefix_len == full_prefix(one.address)
                && on_our_device())
    }
}

/// What is already gone is no error.
async fn delete_address(handle: &Handle, one: Carried, device: &str) -> Result<(), Error> {
    let step = format!("remove {} from {device}", one.address);
    match handle.address().del(one.message).execute().await {
        Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::EADDRNOTAVAIL)) => Ok(()),
        result => result.map_err(|cause| Error::netlink(step, cause)),
    }
}

/// Returns false for a device that stays: somebody put an address on it, so it is no longer ours alone.
async fn delete_device(handle: &Handle, device: &Device) -> Result<bool, Error> {
    let mut left = addresses(handle).await?.into_iter();
    if left.any(|one| one.device == device.index && !is_automatic(one.address)) {
        tracing::info!(device = device.name, "left in place: it carries addresses that are not ours");
        return Ok(false);
    }
    match handle.link().del(device.index).execute().await {
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(true),
        result => result
            .map(|()| true)
            .map_err(|cause| Error::netlink(format!("remove device {}", device.name), cause)),
    }
}

fn note(first_error: &mut Option<Error>, result: Result<(), Error>) {
    if let Err(error) = result {
        first_error.get_or_insert(error);
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
            Self::Taken { device, .. } if device == "kube-ipvs0" => Some(
                "kube-proxy in IPVS mode owns the addresses of Services: take it out of -localip and --intercept, \
                     and point pods at a local address such as 169.254.20.10",
            ),
            Self::Taken { .. } => {
                Some("another node cache seems to run here: remove it, or choose another address")
            }
            _ => None,
        }
    }

    pub(crate) fn netlink(step: String, cause: rtnetlink::Error) -> Self {
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
pub(crate) struct Netlink {
    pub(crate) handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, Error> {
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
    is_hardware: bool,
    is_marked: bool,
}

impl Device {
    /// Made by us, now or in a former life.
    fn is_ours(&self) -> bool {
        self.is_dummy && (self.is_marked || self.name == DEFAULT_DEVICE)
    }
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
        is_hardware: true,
        is_marked: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => device.is_marked = alias == mark::DEVICE_ALIAS,
            LinkAttribute::LinkInfo(infos) => {
                device.is_dummy = infos.contains(&LinkInfo::Kind(InfoKind::Dummy));
                device.is_hardware &= !infos.iter().any(|info| matches!(info, LinkInfo::Kind(_)));
            }
            _ => {}
        }
    }
    device
}

fn find<'list>(devices: &'list [Device], name: &str) -> Option<&'list Device> {
    devices.iter().find(|device| device.name == name)
}

fn name_of(devices: &[Device], index: u32) -> String {
    let device = devices.iter().find(|device| device.index == index);
    device.map_or_else(|| "another device".to_owned(), |device| device.name.clone())
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
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().saturating_abs()),
        _ => None,
    }
}
