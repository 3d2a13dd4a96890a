//! Who has an address and a port already: the process, where it can be seen, else its user.
//!
//! The kernel lists sockets with their inode (`/proc/net/udp` and its like); whose file descriptor leads to that inode is
//! found by looking through `/proc/*/fd`. Processes of other containers, and of other users without root, are not seen.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Sockets and processes that are looked through; a node has fewer.
const MAX_SOCKETS: usize = 100_000;
const MAX_PROCESSES: usize = 20_000;
/// A TCP socket that listens, and a UDP socket that is not connected.
const TCP_LISTENS: &str = "0A";
const UDP_OPEN: &str = "07";

/// A socket of somebody else's that keeps an address from being bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    address: SocketAddr,
    user: String,
    inode: String,
}

/// Names who has `address`, in words; `None` where no socket is seen.
pub fn describe(address: SocketAddr) -> Option<String> {
    let lists = [("udp", UDP_OPEN), ("tcp", TCP_LISTENS), ("udp6", UDP_OPEN), ("tcp6", TCP_LISTENS)];
    let mut holders = lists.into_iter().flat_map(|(list, state)| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{list}")).unwrap_or_default();
        holders(&text, state)
    });
    let own = format!("/proc/{}/fd", std::process::id());
    let holder = holders.find(|holder| {
        let port_is_taken = holder.address.port() == address.port();
        let is_wild = holder.address.ip().is_unspecified() && (holder.address.is_ipv6() || address.is_ipv4());
        port_is_taken
            && (holder.address.ip() == address.ip() || is_wild)
            && !has_socket(Path::new(&own), &holder.inode)
    })?;
    let who = match process_with(&holder.inode) {
        Some((id, name)) => format!("process {id} ({name})"),
        None => format!("a process of user {} that cannot be seen from here", holder.user),
    };
    Some(format!("{who} listens on {}", holder.address))
}

/// The sockets of a list in a state.
fn holders(text: &str, state: &str) -> Vec<Holder> {
    let holder = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, found, _, _, _, user, _, inode, ..] = fields.as_slice() else { return None };
        let address = (*found == state).then(|| local_end(local)).flatten()?;
        Some(Holder { address, user: (*user).to_owned(), inode: (*inode).to_owned() })
    };
    text.lines().skip(1).take(MAX_SOCKETS).filter_map(holder).collect()
}

/// `0A14FEA9:0035`: words of 32 bits in the machine's own order, and the port.
fn local_end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = Vec::new();
    for place in (0..address.len()).step_by(8) {
        octets.extend(u32::from_str_radix(address.get(place..place + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(four) => IpAddr::from(four),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets.as_slice()).ok()?),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

fn process_with(inode: &str) -> Option<(u32, String)> {
    let processes = fs::read_dir("/proc").ok()?.flatten().take(MAX_PROCESSES);
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let id = ids.find(|id| has_socket(Path::new(&format!("/proc/{id}/fd")), inode))?;
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    // A process may call itself anything.
    Some((id, name.trim().escape_default().to_string()))
}

fn has_socket(folder: &Path, inode: &str) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.to_str() == Some(wanted.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_lists() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             1: 0A14FEA9:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 4711 2 0 0\n\
             2: 0A14FEA9:0035 01020304:0035 01 00000000:00000000 00:00000000 00000000   101        0 4712 2 0 0\n\
             3: nonsense\n";
        let found = holders(list, UDP_OPEN);
        let expected = if cfg!(target_endian = "little") { "169.254.20.10:53" } else { "10.20.254.169:53" };
        let holder =
            Holder { address: expected.parse().unwrap(), user: "101".to_owned(), inode: "4711".to_owned() };
        assert_eq!(found, [holder]);
        assert_eq!(local_end("00000000000000000000000000000000:0035").unwrap().to_string(), "[::]:53");
        assert_eq!(local_end("0A14FEA:0035"), None);
    }

    #[test]
    fn names_a_process_by_its_socket_and_nobody_where_there_is_none() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // Our own is none that keeps us from binding.
        assert_eq!(describe(socket.local_addr().unwrap()), None);
        let list = fs::read_to_string("/proc/thread-self/net/udp").unwrap();
        let address = socket.local_addr().unwrap();
        let holder = holders(&list, UDP_OPEN).into_iter().find(|holder| holder.address == address).unwrap();
        assert_eq!(process_with(&holder.inode).unwrap().0, std::process::id());
    }
}
