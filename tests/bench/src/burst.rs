//! Two thousand queries at once: are all of them answered?

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Queries of a burst.
pub(crate) const QUERIES: u16 = 2_000;

/// Answers that have not come by then are lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends `names` (in a query for A), as fast as the kernel takes them, and returns how many were not answered. To be
/// called in the namespace of the server.
///
/// # Errors
/// The socket cannot be made.
pub(crate) fn lost(server: SocketAddr, names: &[String]) -> std::io::Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // What this side loses would be blamed on the server.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
    SockRef::from(&socket).set_send_buffer_size(16 << 20)?;
    socket.connect(server)?;
    let queries: Vec<_> = (0..QUERIES).zip(names.iter().cycle()).map(|(id, name)| query(id, name)).collect();
    for query in &queries {
        socket.send(query)?;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut missing: HashSet<u16> = (0..QUERIES).collect();
    let mut buffer = [0; 2048];
    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        if let Ok(length) = socket.recv(&mut buffer)
            && let Some(id) = buffer.get(..length.min(2)).and_then(|bytes| bytes.first_chunk::<2>())
        {
            missing.remove(&u16::from_be_bytes(*id));
        }
    }
    Ok(missing.len() as u64)
}

/// A query for the addresses of a name.
pub(crate) fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}
