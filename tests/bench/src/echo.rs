//! Servers that only send back what came: what the kernel alone costs. Whatever answers DNS costs that, and more.

use std::net::{SocketAddr, UdpSocket};

use crate::batch::{Datagrams, RECEIVE_BUFFER};

/// The bit that makes a query a response.
const RESPONSE: u8 = 0x80;

/// Many datagrams in one system call: the least that a query can cost.
///
/// # Errors
/// The address cannot be bound, or the socket is of no more use.
pub(crate) fn batched(address: SocketAddr) -> Result<(), String> {
    let mut datagrams = Datagrams::bind(address)?;
    println!("answering on {address}");
    datagrams.serve(|message| {
        if let Some(flags) = message.get_mut(2) {
            *flags |= RESPONSE;
        }
    })
}

/// One datagram after the other in one thread, as the plainest server does it.
///
/// # Errors
/// As [`batched`].
pub(crate) fn blocking(address: SocketAddr) -> Result<(), String> {
    let socket = UdpSocket::bind(address).map_err(|error| format!("cannot bind {address}: {error}"))?;
    // Losing queries would make it cheaper.
    socket2::SockRef::from(&socket)
        .set_recv_buffer_size(RECEIVE_BUFFER)
        .map_err(|error| format!("cannot set a buffer: {error}"))?;
    println!("answering on {address}");
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let Some(message) = buffer.get_mut(..length) else { continue };
        if let Some(flags) = message.get_mut(2) {
            *flags |= RESPONSE;
        }
        // Refused: left out, as a datagram may be.
        drop(socket.send_to(message, peer));
    }
}

/// Keeps every CPU busy, until it is killed.
///
/// # Errors
/// Never; it does not return.
pub(crate) fn keep_busy() -> Result<(), String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 1..cpus {
        std::thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    loop {
        std::hint::spin_loop();
    }
}
