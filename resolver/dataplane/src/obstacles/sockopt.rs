//! The crate's one place with unsafe code: `getsockopt` with an option that no well-kept safe wrapper has.
//!
//! iptables-legacy has no other way to list its tables.
#![expect(unsafe_code, reason = "the crate's one named module for it; every block has its note")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// `IPT_SO_GET_INFO`, the same for IPv6.
pub(super) const GET_INFO: i32 = 64;
/// `IPT_SO_GET_ENTRIES`, the same for IPv6.
pub(super) const GET_ENTRIES: i32 = 65;

/// Asks the kernel for an option of IPv4 or IPv6. The buffer holds the question, and afterwards the answer; returned is
/// the answer's length.
///
/// # Errors
/// The kernel refuses.
pub(super) fn ask(is_ipv4: bool, option: i32, buffer: &mut [u8]) -> io::Result<usize> {
    // Any socket of the family will do.
    let socket = if is_ipv4 {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?
    };
    let level = if is_ipv4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(too_long)?;
    // SAFETY: the descriptor is open for the time of the call, because `socket` lives on. The kernel reads and writes at
    // most `length` octets at the pointer, which is the length of the borrowed buffer; octets need no alignment, for the
    // kernel copies them as octets. It writes `length`, which is a `socklen_t` of ours, and keeps neither pointer.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len()))
}
