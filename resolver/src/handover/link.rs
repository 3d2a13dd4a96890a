//! The line between two processes: whole messages with file descriptors, over a `SOCK_SEQPACKET` Unix socket.
//!
//! Its rendezvous is an abstract name in the network namespace: two pods of one node share it without a hostPath, it
//! vanishes with its last holder, and no file is left over from a crash. Anybody in the namespace may connect, so a
//! peer is believed only with our own user id, as the kernel does for `SO_REUSEPORT`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use super::message::{MAX_DESCRIPTORS, MAX_MESSAGE, Malformed, Message};

/// Newcomers that wait while one is being served.
const BACKLOG: i32 = 16;

/// Pause before descriptors are sent again that the kernel has no room for: too many are on their way between sockets.
const ROOM_PAUSE: Duration = Duration::from_millis(2);

/// What the kernel shows for a user of another user namespace; it is nobody, or anybody.
const OVERFLOW_UID: u32 = 65534;

/// A listening socket under the rendezvous name.
#[derive(Debug)]
pub struct Rendezvous {
    socket: UnixListener,
}

/// A line to the other process.
#[derive(Debug)]
pub struct Link {
    /// Not a stream: the type is borrowed for its waiting, which tokio lends to other sockets by unsafe code only. It
    /// never reads or writes itself.
    socket: UnixStream,
}

/// Why nothing came, or went.
#[derive(Debug)]
pub enum LinkError {
    /// The other process has closed its end: it has exited, or was killed.
    Gone,
    /// It said nothing for too long.
    Silent,
    /// What it said is no message, or came with the wrong number of descriptors.
    Malformed(Malformed),
    /// It said something else than what comes next.
    Unexpected(&'static str),
    /// A system call failed.
    System(io::Error),
}

/// What came of asking for a line.
#[derive(Debug)]
pub enum Connected {
    /// Somebody with our user id listens.
    Line(Link),
    /// Nobody listens under the name.
    Nobody,
    /// Somebody with another user id has the name.
    Stranger(u32),
}

impl Rendezvous {
    /// Takes the name; `None` where somebody has it.
    ///
    /// # Errors
    /// As `socket(2)`, `bind(2)`, `listen(2)`.
    pub fn claim(name: &str) -> io::Result<Option<Self>> {
        let socket = seqpacket()?;
        match rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
            Ok(()) => {}
            Err(rustix::io::Errno::ADDRINUSE) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        rustix::net::listen(&socket, BACKLOG)?;
        Self::from_fd(socket).map(Some)
    }

    /// From a descriptor that another process has sent.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixListener::from_std(socket)? })
    }

    /// Another handle, for a task or a process of its own.
    ///
    /// # Errors
    /// As `fcntl(2)`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::from_fd(self.socket.as_fd().try_clone_to_owned()?)
    }

    /// The next one who connects, and its user id where that is not ours: then there is no line to it.
    ///
    /// # Errors
    /// As `accept4(2)`.
    pub async fn accept(&self) -> io::Result<Result<Link, u32>> {
        let (socket, _) = self.socket.accept().await?;
        match stranger(&socket)? {
            Some(uid) => Ok(Err(uid)),
            None => Ok(Ok(Link { socket })),
        }
    }
}

impl AsFd for Rendezvous {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link {
    /// Connects to whoever has the name.
    ///
    /// # Errors
    /// As `connect(2)`, but for nobody being there.
    pub fn connect(name: &str) -> io::Result<Connected> {
        let socket = seqpacket()?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
            Ok(()) => {}
            Err(rustix::io::Errno::CONNREFUSED) => return Ok(Connected::Nobody),
            Err(error) => return Err(error.into()),
        }
        match stranger(&socket)? {
            Some(uid) => Ok(Connected::Stranger(uid)),
            None => {
                let socket = UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))?;
                Ok(Connected::Line(Self { socket }))
            }
        }
    }

    /// Sends one message with its descriptors, which stay open here.
    ///
    /// # Errors
    /// The peer has gone, or did not read for as long as `patience`.
    pub async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), LinkError> {
        let bytes = message.encode();
        tokio::time::timeout(patience, self.send_bytes(&bytes, descriptors))
            .await
            .map_err(|_| LinkError::Silent)?
    }

    async fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        loop {
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags)?)
            };
            match self.socket.async_io(Interest::WRITABLE, send).await {
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_gone(&error) => return Err(LinkError::Gone),
                Err(error) => return Err(LinkError::System(error)),
            }
        }
    }

    /// The next message, with its descriptors: exactly as many as it says. Nothing is lost when this is dropped before
    /// it is done.
    ///
    /// # Errors
    /// The peer has gone, or has sent what is no message.
    pub async fn receive(&self) -> Result<(Message, Vec<OwnedFd>), LinkError> {
        let mut bytes = Vec::new();
        let (descriptors, cut) = loop {
            let receive = || receive_bytes(&self.socket, &mut bytes);
            match self.socket.async_io(Interest::READABLE, receive).await {
                Ok(received) => break received,
                // A peer that has died with unread messages is told so once, before what it has sent itself: that is
                // still there, and may be its last word.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(LinkError::System(error)),
            }
        };
        if bytes.is_empty() {
            return Err(LinkError::Gone);
        }
        if cut {
            // More bytes than a message has, or more descriptors than this process may open.
            return Err(LinkError::Malformed(Malformed));
        }
        let message = Message::decode(&bytes).map_err(LinkError::Malformed)?;
        if message.descriptors() != descriptors.len() {
            return Err(LinkError::Malformed(Malformed));
        }
        Ok((message, descriptors))
    }

    /// As [`Link::receive`], for as long as `patience`.
    ///
    /// # Errors
    /// As there, and when nothing came.
    pub async fn receive_within(&self, patience: Duration) -> Result<(Message, Vec<OwnedFd>), LinkError> {
        tokio::time::timeout(patience, self.receive()).await.map_err(|_| LinkError::Silent)?
    }
}

fn receive_bytes(socket: &UnixStream, bytes: &mut Vec<u8>) -> io::Result<(Vec<OwnedFd>, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    bytes.resize(MAX_MESSAGE, 0);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags);
    let received = received.inspect_err(|_| bytes.clear())?;
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((descriptors, received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)))
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The peer's user id, unless it is ours. (By `nix`: in another pid namespace the peer has process id 0 here, which
/// `rustix` has no value for.)
fn stranger(socket: &impl AsFd) -> io::Result<Option<u32>> {
    let theirs = getsockopt(socket, PeerCredentials)?.uid();
    let ours = rustix::process::geteuid().as_raw();
    Ok((theirs != ours || ours == OVERFLOW_UID).then_some(theirs))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("the other process has gone"),
            Self::Silent => f.write_str("the other process did not go on in time"),
            Self::Malformed(_) => f.write_str("the other process sent what is no message of a handover"),
            Self::Unexpected(what) => write!(f, "the other process sent {what}, which does not come here"),
            Self::System(cause) => write!(f, "a system call failed: {cause}"),
        }
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed(cause) => Some(cause),
            Self::System(cause) => Some(cause),
            _ => None,
        }
    }
}
