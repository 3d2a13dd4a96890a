//! The kernel's word that rules changed, anybody's.
//!
//! On a busy node that is several times a second, so a change is not looked at when it is heard: [`Ears::changed`]
//! waits until it has been quiet for a moment, but not for long, and however many there were, they count as one.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::time::{Instant, timeout_at};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Octets that may wait. Little: when the kernel drops notifications, that is one as well.
const WAITING_OCTETS: usize = 1 << 16;
/// A change that is followed by no other for this long is over.
const QUIET: Duration = Duration::from_millis(300);
/// The longest wait for that.
const MOST: Duration = Duration::from_secs(5);

/// Open ears for changes of nftables.
#[derive(Debug)]
pub struct Ears(Socket);

struct Socket(TokioSocket);

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("netlink")
    }
}

impl Ears {
    /// Opens the socket, in the namespace of the calling thread. What happens from now on is not missed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().set_rx_buf_sz(WAITING_OCTETS)?;
        socket.socket_ref().add_membership(GROUP)?;
        Ok(Self(Socket(socket)))
    }

    /// Waits for a change, and for it to be over. Dropping the future may lose one.
    ///
    /// # Errors
    /// Nothing can be heard any more.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.hear().await?;
        let latest = Instant::now() + MOST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            match timeout_at(quiet, self.hear()).await {
                Ok(heard) => heard?,
                Err(_) => return Ok(()),
            }
            if Instant::now() >= latest {
                return Ok(());
            }
        }
    }

    async fn hear(&self) -> io::Result<()> {
        match self.0.0.recv_from_full().await {
            Ok(_) => Ok(()),
            // Some were dropped: there was a change.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
