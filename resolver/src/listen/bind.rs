//! Sockets of one address: made, bound, and asked whether somebody else has it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use nodestub_corefile::config::Scheme;
use socket2::{Domain, Socket, Type};

use crate::{privileges, sys};

/// TCP connections that wait for being accepted.
const TCP_BACKLOG: i32 = 1024;

/// A socket could not be made, bound or set up.
#[derive(Debug)]
pub struct BindError {
    pub(super) address: SocketAddr,
    pub(super) protocol: &'static str,
    pub(super) cause: io::Error,
}

/// A UDP socket; several share an address.
///
/// # Errors
/// It cannot be made, sized or bound.
pub(super) fn udp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    super::overflow::size_receive_buffer(&socket, address)?;
    if address.ip().is_unspecified() {
        sys::report_local_end(socket.as_fd(), address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A listening socket.
///
/// # Errors
/// It cannot be made or bound.
pub(super) fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    // A restart must not wait for connections that are fading away; and a reload may go from the wildcard to one of
    // its addresses, which the kernel allows side by side only so.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(TCP_BACKLOG)?;
    Ok(socket.into())
}

/// Whether queries to an address would be ours alone: nobody else has bound it.
pub fn is_free(address: SocketAddr, scheme: Scheme) -> bool {
    let probe = privileges::call(move || probe(address, scheme));
    // Any other error will be met, and told, where it is bound in earnest.
    !matches!(probe, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

/// A socket that is bound where nobody else is. A query that came to it would be lost with it, so the rules pass it by; who
/// may not have that has no rules.
fn probe(address: SocketAddr, scheme: Scheme) -> io::Result<Socket> {
    let kind = match scheme {
        Scheme::Dns => Type::DGRAM,
        Scheme::Tls => Type::STREAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind.cloexec(), None)?;
    // Connections that are fading away are no listener.
    socket.set_reuse_address(scheme == Scheme::Tls)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    drop(socket.set_ip_transparent_v4(true));
    // Without SO_REUSEPORT: our own user's sockets are in the way as well.
    socket.bind(&address.into())?;
    Ok(socket)
}

impl BindError {
    /// The address, where somebody else has it.
    pub fn in_use(&self) -> Option<SocketAddr> {
        (self.cause.kind() == io::ErrorKind::AddrInUse).then_some(self.address)
    }
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, protocol, cause } = self;
        write!(f, "cannot listen on {address} ({protocol}): {cause}")?;
        match cause.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, ". Another process has the port: `ss -lnup sport = :{}` names it", address.port())
            }
            io::ErrorKind::AddrNotAvailable => {
                f.write_str(". No device has this address: give it with -localip, or change `bind`")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str(". Ports below 1024 need the capability NET_BIND_SERVICE")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_takes_no_query_that_the_rules_see() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = probe(local.parse().unwrap(), Scheme::Dns) else { continue };
            // Refused to who has no right to it, and then there are no rules.
            let may =
                Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().set_ip_transparent_v4(true).is_ok();
            assert_eq!(socket.ip_transparent_v4().unwrap(), may, "{local}");
        }
    }

    #[test]
    fn an_address_is_free_unless_somebody_has_it_even_one_of_ours() {
        for (local, scheme) in [("127.0.0.1:0", Scheme::Dns), ("127.0.0.1:0", Scheme::Tls)] {
            let ours = match scheme {
                Scheme::Dns => udp(local.parse().unwrap()).unwrap(),
                Scheme::Tls => tcp(local.parse().unwrap()).unwrap().into(),
            };
            let address = ours.local_addr().unwrap().as_socket().unwrap();
            assert!(!is_free(address, scheme), "{scheme}");
            drop(ours);
            assert!(is_free(address, scheme), "{scheme}");
        }
    }
}
