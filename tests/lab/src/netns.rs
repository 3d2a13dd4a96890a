//! A network namespace as a value.
//!
//! A namespace is a file descriptor here. Threads enter it (`setns`), never the whole process: [`Netns::run`] lends a
//! closure a fresh thread that is inside; sockets and child processes made there stay inside for their whole life.
//! When the last descriptor, socket and process are gone, the kernel takes the namespace and its devices away.
//!
//! Devices, addresses and routes go by rtnetlink on a small runtime inside such a thread. A veth pair is made in one
//! of the two new namespaces and its peer moved to the other, so the machine's own namespace never sees either end.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::TryStreamExt;
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Daemon, Error};

/// Where a thread finds its own network namespace. `/proc/self` would be the main thread's.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// A network namespace of our own, with `lo` up. See the module's comment.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// Makes a new namespace. Needs `CAP_SYS_ADMIN` (root, or a user namespace: see [`crate::isolate()`]).
    pub fn new() -> Result<Self, Error> {
        let file = on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(Error::at("make a network namespace"))?;
            File::open(OWN_NETNS).map_err(Error::at(format!("open {OWN_NETNS}")))
        })?;
        let netns = Self { file };
        netns.set_up("lo")?;
        Ok(netns)
    }

    /// The namespace of the calling thread, as a handle.
    pub fn current() -> Result<Self, Error> {
        let file = File::open(OWN_NETNS).map_err(Error::at(format!("open {OWN_NETNS}")))?;
        Ok(Self { file })
    }

    /// Another handle on the same namespace.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let file = self.file.try_clone().map_err(Error::at("copy a namespace's descriptor"))?;
        Ok(Self { file })
    }

    /// Runs a closure on a thread inside the namespace and waits for it. A panic goes on in the caller.
    ///
    /// Sockets that the closure makes, and threads and processes that it starts, belong to the namespace for ever.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_new_thread(|| {
            enter(self.file.as_fd())?;
            Ok(work())
        })
    }

    /// Runs an async closure on a current-thread tokio runtime inside the namespace, and waits for it.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> Result<T, Error> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Error::at("start a runtime"))?;
            Ok(runtime.block_on(work()))
        })?
    }

    /// Starts a process inside the namespace, with its output captured (see [`Daemon`]).
    pub fn spawn(&self, command: Command) -> Result<Daemon, Error> {
        self.run(|| Daemon::spawn(command))?
    }

    /// Runs a process inside the namespace to its end.
    pub fn output(&self, mut command: Command) -> Result<std::process::Output, Error> {
        self.run(|| command.output().map_err(Error::at(format!("run {command:?}"))))?
    }

    /// Joins two namespaces by a veth pair: `device` here, `peer_device` in `peer`, both up.
    pub fn join(&self, device: &str, peer: &Self, peer_device: &str) -> Result<(), Error> {
        // Both ends lie in this namespace for a moment, so the peer's first name must be nobody's.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let passing_name = format!("lab{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let peer_fd = peer.file.as_raw_fd();
        self.netlink(&format!("make the veth pair {device} and {peer_device}"), async |handle| {
            handle.link().add(LinkVeth::new(device, &passing_name).build()).execute().await?;
            let index = device_index(&handle, &passing_name).await?;
            let moved = LinkUnspec::new_with_index(index).name(peer_device).setns_by_fd(peer_fd).build();
            handle.link().set(moved).execute().await
        })?;
        self.set_up(device)?;
        peer.set_up(peer_device)
    }

    /// Brings a device up.
    pub fn set_up(&self, device: &str) -> Result<(), Error> {
        self.netlink(&format!("bring {device} up"), async |handle| {
            let index = device_index(&handle, device).await?;
            handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
        })
    }

    /// Adds an address. IPv6 goes without duplicate address detection, so it serves at once.
    pub fn add_address(&self, device: &str, address: IpAddr, prefix_len: u8) -> Result<(), Error> {
        self.netlink(&format!("add {address}/{prefix_len} to {device}"), async |handle| {
            let index = device_index(&handle, device).await?;
            let mut request = handle.address().add(index, address, prefix_len);
            if address.is_ipv6() {
                let message = request.message_mut();
                message.header.flags |= AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        })
    }

    /// The addresses of a device with their prefix lengths, link-local IPv6 included.
    pub fn addresses(&self, device: &str) -> Result<Vec<(IpAddr, u8)>, Error> {
        self.netlink(&format!("list the addresses of {device}"), async |handle| {
            let index = device_index(&handle, device).await?;
            let messages: Vec<_> =
                handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
            let address = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            };
            Ok(messages
                .iter()
                .filter_map(|message| {
                    let found = message.attributes.iter().find_map(address)?;
                    Some((found, message.header.prefix_len))
                })
                .collect())
        })
    }

    /// Adds a route to `destination/prefix_len` by a gateway; the unspecified address with 0 is the default route.
    pub fn add_route(&self, destination: IpAddr, prefix_len: u8, gateway: IpAddr) -> Result<(), Error> {
        self.netlink(&format!("add a route to {destination}/{prefix_len} by {gateway}"), async |handle| {
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(destination, prefix_len)
                .and_then(|route| route.gateway(gateway))
                .map_err(|error| rtnetlink::Error::InvalidNla(error.to_string()))?
                .build();
            handle.route().add(route).execute().await
        })
    }

    /// Writes a sysctl of this namespace: `set_sysctl("net/ipv4/ip_forward", "1")`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<(), Error> {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value).map_err(Error::at(format!("write {value} to {path}"))))?
    }

    /// The names of the nftables tables of all families in this namespace.
    pub fn nft_tables(&self) -> Result<Vec<String>, Error> {
        let request = NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
            NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }),
        );
        let messages = self.run(|| crate::netfilter::dump(request))??;
        let name = |attribute: TableAttribute| match attribute {
            TableAttribute::Name(name) => Some(name),
            _ => None,
        };
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) => {
                    table.attributes.into_iter().find_map(name)
                }
                _ => None,
            })
            .collect())
    }

    /// Takes away a table of nftables' family `inet`; one that is not there is no error.
    pub fn delete_nft_table(&self, name: &str) -> Result<(), Error> {
        let table = || TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] };
        // Made first, so that there is one to delete.
        let messages = vec![NfTablesMessage::NewTable(table()), NfTablesMessage::DeleteTable(table())];
        self.run(|| crate::netfilter::transact(NetfilterProtoFamily::Inet, messages))?
    }

    fn netlink<T: Send>(
        &self,
        step: &str,
        work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
    ) -> Result<T, Error> {
        self.block_on(async || {
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(Error::at("open an rtnetlink socket"))?;
            let connection = tokio::spawn(connection);
            let result = work(handle).await.map_err(Error::at(step));
            connection.abort();
            result
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(netns: BorrowedFd<'_>) -> Result<(), Error> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(Error::at("enter a network namespace"))
}

/// A fresh thread for work that changes the thread it runs on. Panics go on in the caller.
pub(crate) fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

async fn device_index(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await? {
        Some(link) => Ok(link.header.index),
        None => Err(rtnetlink::Error::RequestFailed),
    }
}
