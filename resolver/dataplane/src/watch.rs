//! The kernel's own word that something changed: links, addresses, nftables.
//!
//! ```text
//! rtnetlink: links, IPv4 and IPv6 addresses ─┐
//! netfilter: nftables ───────────────────────┴─▶ does it concern us? ─▶ verify ─▶ what is wrong
//! ```
//!
//! A notification concerns us when one of our names or addresses occurs in its octets. That is coarse and cheap (on a busy
//! node kube-proxy changes thousands of rules at a time) and misses nothing; what is really wrong is for
//! [`Applied::verify`] to say. When the kernel drops notifications because they came too fast, that counts as one.

use std::fmt;
use std::io;
use std::net::IpAddr;

use futures_util::FutureExt;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use crate::desired::TABLE;
use crate::{Applied, Error as StateError};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`.
const ROUTE_GROUPS: [u32; 3] = [1, 5, 9];
/// `NFNLGRP_NFTABLES`.
const NETFILTER_GROUPS: [u32; 1] = [7];
/// Octets of notifications that may wait; the kernel gives less where `net.core.rmem_max` is smaller.
const WAITING_OCTETS: usize = 1 << 20;
/// Notifications that are taken together before one look, so that a flood cannot keep the look from happening.
const MAX_TOGETHER: usize = 1024;

/// Open ears for changes to what was applied. Of the network namespace of the thread that opened it.
pub struct Watch {
    route: TokioSocket,
    netfilter: TokioSocket,
    /// A look is due: nobody has looked yet, or something came that concerns us.
    is_due: bool,
}

impl Watch {
    /// Opens the sockets. What happens from now on is not missed, however late [`Watch::broken`] is called.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            route: subscribe(NETLINK_ROUTE, &ROUTE_GROUPS, "listen for changes of devices and addresses")?,
            netfilter: subscribe(NETLINK_NETFILTER, &NETFILTER_GROUPS, "listen for changes of rules")?,
            is_due: true,
        })
    }

    /// Waits until something is not as applied, and returns what: a state to repair, by [`Applied::repair`].
    ///
    /// The first call looks at once. After an answer it waits for the next change, even when nothing was repaired.
    /// Dropping the future loses nothing.
    pub async fn broken(&mut self, applied: &Applied) -> Result<StateError, Error> {
        let names = Names::of(applied);
        loop {
            while !self.is_due {
                self.hear(&names).await?;
            }
            let state = applied.verify().await;
            self.is_due = false;
            if let Err(wrong) = state {
                return Ok(wrong);
            }
        }
    }

    /// Waits for a notification, and takes those that wait behind it.
    async fn hear(&mut self, names: &Names) -> Result<(), Error> {
        tokio::select! {
            heard = self.route.recv_from_full() => self.is_due |= names.concerned_by_route(heard)?,
            heard = self.netfilter.recv_from_full() => self.is_due |= names.concerned_by_netfilter(heard)?,
        }
        for _ in 0..MAX_TOGETHER {
            let Some(heard) = self.route.recv_from_full().now_or_never() else { break };
            self.is_due |= names.concerned_by_route(heard)?;
        }
        for _ in 0..MAX_TOGETHER {
            let Some(heard) = self.netfilter.recv_from_full().now_or_never() else { break };
            self.is_due |= names.concerned_by_netfilter(heard)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("is_due", &self.is_due).finish_non_exhaustive()
    }
}

/// Why nothing can be heard.
#[derive(Debug)]
pub struct Error {
    step: &'static str,
    cause: io::Error,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// A datagram of notifications and its sender.
type Heard = io::Result<(Vec<u8>, netlink_sys::SocketAddr)>;

/// What to look for in notifications.
struct Names {
    route: Vec<Vec<u8>>,
    netfilter: Vec<Vec<u8>>,
}

impl Names {
    fn of(applied: &Applied) -> Self {
        let terminated = |name: &str| [name.as_bytes(), &[0]].concat();
        let mut route = Vec::new();
        if let Some(link) = &applied.link {
            route.push(terminated(link.device()));
            route.extend(link.addresses().iter().map(|address| match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            }));
        }
        let netfilter = applied.ruleset.iter().map(|_| terminated(TABLE)).collect();
        Self { route, netfilter }
    }

    fn concerned_by_route(&self, heard: Heard) -> Result<bool, Error> {
        concerns(heard, &self.route, "hear of changes of devices and addresses")
    }

    fn concerned_by_netfilter(&self, heard: Heard) -> Result<bool, Error> {
        concerns(heard, &self.netfilter, "hear of changes of rules")
    }
}

fn concerns(heard: Heard, names: &[Vec<u8>], step: &'static str) -> Result<bool, Error> {
    match heard {
        Ok((datagram, _)) => Ok(names.iter().any(|name| contains(&datagram, name))),
        // Some were dropped, and one of them may have been about us.
        Err(cause) if cause.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
        Err(cause) => {
            let cause =
                cause.raw_os_error().map_or_else(|| cause.kind().into(), io::Error::from_raw_os_error);
            Err(Error { step, cause })
        }
    }
}

fn contains(octets: &[u8], name: &[u8]) -> bool {
    octets.windows(name.len().max(1)).any(|window| window == name)
}

fn subscribe(protocol: isize, groups: &[u32], step: &'static str) -> Result<TokioSocket, Error> {
    let open = || {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().set_rx_buf_sz(WAITING_OCTETS)?;
        for group in groups {
            socket.socket_ref().add_membership(*group)?;
        }
        Ok(socket)
    };
    open().map_err(|cause| Error { step, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(octets: &[u8]) -> Heard {
        Ok((octets.to_vec(), netlink_sys::SocketAddr::new(0, 0)))
    }

    #[test]
    fn listens_to_its_own_names_and_to_losses_only() {
        let names = Names {
            route: vec![b"nodestub\0".to_vec(), vec![169, 254, 20, 10]],
            netfilter: vec![b"nodestub\0".to_vec()],
        };
        let route = |octets: &[u8]| names.concerned_by_route(heard(octets)).unwrap();
        assert!(route(b"\x0d\0\x03\0nodestub\0\0\0\0"));
        assert!(route(&[8, 0, 2, 0, 169, 254, 20, 10]));
        assert!(!route(b"\x0b\0\x03\0veth12\0\0"));
        assert!(!route(b""));
        let netfilter = |octets: &[u8]| names.concerned_by_netfilter(heard(octets)).unwrap();
        assert!(netfilter(b"\x0d\0\x01\0nodestub\0\0\0\0"));
        assert!(!netfilter(b"\x0f\0\x01\0nodestub-e2e\0"));
        let lost = || Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        assert!(names.concerned_by_route(lost()).unwrap());
        assert!(names.concerned_by_netfilter(lost()).unwrap());
        let error = names.concerned_by_route(Err(io::Error::from_raw_os_error(libc::EBADF))).unwrap_err();
        assert!(error.to_string().contains("devices and addresses"), "{error}");
    }
}
