//! Datagrams in batches, by `recvmmsg` and `sendmmsg`: under the echo that is the socket's limit, and the upstream.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

/// Datagrams in one system call; more gains nothing.
const BATCH: usize = 16;

/// Bytes of a datagram.
const SIZE: usize = 2048;

/// Room for what arrives while a server is not on its CPU, in bytes.
pub(crate) const RECEIVE_BUFFER: usize = 4 << 20;

/// A blocking UDP socket with room for a burst.
#[derive(Debug)]
pub(crate) struct Datagrams {
    socket: Socket,
}

impl Datagrams {
    /// # Errors
    /// The address cannot be bound.
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, String> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
            // The kernel allows more than its limit only with the right to it.
            if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
                socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            }
            socket.bind(&address.into())?;
            Ok(socket)
        };
        let socket = bind().map_err(|error: std::io::Error| format!("cannot bind {address}: {error}"))?;
        Ok(Self { socket })
    }

    /// Turns every datagram into its reply, and sends it back; an empty one is not sent. Ends with an error only.
    ///
    /// # Errors
    /// The socket is of no more use.
    pub(crate) fn serve(&mut self, reply: impl Fn(&mut Vec<u8>)) -> Result<(), String> {
        let socket = self.socket.as_raw_fd();
        let mut received = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut sent = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let mut buffers = vec![[0; SIZE]; BATCH];
        let mut messages: Vec<Vec<u8>> = (0..BATCH).map(|_| Vec::with_capacity(SIZE)).collect();
        let mut peers = Vec::with_capacity(BATCH);
        loop {
            let mut count = 0;
            peers.clear();
            {
                let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
                let batch =
                    recvmmsg(socket, &mut received, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
                match batch {
                    Ok(batch) => {
                        for (datagram, message) in batch.zip(&mut messages) {
                            let bytes = datagram.iovs().next().unwrap_or_default();
                            message.clear();
                            message.extend_from_slice(bytes.get(..datagram.bytes).unwrap_or(bytes));
                            peers.push(datagram.address);
                            count += 1;
                        }
                    }
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(format!("cannot receive: {error}")),
                }
            }
            let mut slices = Vec::with_capacity(BATCH);
            let mut to = Vec::with_capacity(BATCH);
            for (message, peer) in messages.iter_mut().zip(&peers).take(count) {
                reply(message);
                if !message.is_empty() {
                    slices.push([IoSlice::new(message)]);
                    to.push(*peer);
                }
            }
            let mut first = 0;
            while first < slices.len() {
                let (slices, to) =
                    (slices.get(first..).unwrap_or_default(), to.get(first..).unwrap_or_default());
                // Refused: left out, as a datagram may be.
                let went = sendmmsg(socket, &mut sent, slices, to, [], MsgFlags::empty());
                first += went.map_or(1, |went| went.count().max(1));
            }
        }
    }
}
