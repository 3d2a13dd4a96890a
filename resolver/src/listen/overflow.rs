//! Room for a burst: the receive buffers of UDP sockets, and what the kernel dropped all the same.
//!
//! A queue in the kernel is the only place where queries wait while a thread is not on its CPU. Two thousand that come
//! at once, after a silence, must find room.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

/// Receive buffer of each UDP socket, in bytes: a burst of 2,000 queries and more. The kernel counts about 1.3 KiB for
/// each, and doubles what it is asked for.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What a query takes of a receive buffer as the kernel reports it, in bytes.
const QUERY: usize = 1280;

/// Sizes a socket's receive buffer, and says where the kernel gives less than [`RECEIVE_BUFFER`].
///
/// # Errors
/// As `setsockopt(2)`, apart from the right to go beyond `net.core.rmem_max`, which is done without.
pub(super) fn size_receive_buffer(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    // Beyond the system's limit with the right to it (NET_ADMIN); otherwise as much as it allows.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    let granted = socket.recv_buffer_size()?;
    if granted < RECEIVE_BUFFER {
        tracing::warn!(
            %address,
            bytes = granted,
            queries = granted / QUERY,
            "the kernel grants a smaller receive buffer than asked for: a burst of more queries than this at once \
             loses some. `sysctl -w net.core.rmem_max={RECEIVE_BUFFER}` on the node allows more"
        );
    }
    Ok(())
}

/// Queries that the kernel has dropped from the queues of UDP sockets bound to these addresses, since those sockets
/// were bound.
pub fn dropped(addresses: &[SocketAddr]) -> u64 {
    let tables = [Path::new("/proc/net/udp"), Path::new("/proc/net/udp6")];
    let texts = tables.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.map(|text| dropped_in(&text, addresses)).sum()
}

/// The last column of the lines whose local address is one of these.
fn dropped_in(text: &str, addresses: &[SocketAddr]) -> u64 {
    let drops = text.lines().skip(1).filter_map(|line| {
        let local = line.split_whitespace().nth(1)?;
        let drops = line.split_whitespace().next_back()?.parse::<u64>().ok()?;
        addresses.contains(&parse_address(local)?).then_some(drops)
    });
    drops.sum()
}

/// `0100007F:0035`: words in the machine's byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let address: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_the_kernels_table_of_sockets() {
        let text = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
                    1: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 5\n \
                    2: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 2 2 0000000000000000 7\n \
                    3: 0200007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 3 2 0000000000000000 100\n \
                    4: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4 2 0 9\n";
        let addresses: Vec<SocketAddr> =
            ["127.0.0.1:53", "[::1]:53"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(dropped_in(text, &addresses), 21);
        assert_eq!(dropped_in("", &addresses), 0);
        assert_eq!(dropped_in("head\n 1: x:y z\n\n", &addresses), 0);
    }

    #[test]
    fn counts_what_the_kernel_dropped() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        socket2::SockRef::from(&socket).set_recv_buffer_size(2304).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(dropped(&[address]), 0);
        for _ in 0..50 {
            client.send_to(&[0; 100], address).unwrap();
        }
        assert!(dropped(&[address]) > 0);
    }
}
