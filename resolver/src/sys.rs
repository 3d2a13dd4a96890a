//! The one place with unsafe code: system calls that no well-kept safe wrapper offers.
//!
//! - [`Batch`]: `recvmmsg` and `sendmmsg` over buffers of its own. A reply is built in the buffer that its query came
//!   in, and goes back to where it came from.
//! - [`steer_by_cpu`]: which socket of a `SO_REUSEPORT` group takes a packet (`SO_ATTACH_REUSEPORT_CBPF`).
//! - [`send_reply`]: one late reply from the slow side.
//! - [`give_back_memory`]: what the allocator keeps and nobody uses.
//!
//! Everything is plain old data and lives in fixed arrays; the kernel is only ever given pointers into `self`, for the
//! time of one call.
#![expect(unsafe_code, reason = "the crate's one named module for it; every block has its note")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Packets in one batch. 8 are enough to spread the cost of a system call, more than 16 gain nothing measurable.
pub const BATCH: usize = 16;

/// Bytes for one packet on the fast side. A longer query is no query; a longer reply goes by the slow side.
pub const BUFFER: usize = 4096;

/// [`BATCH`], as the system calls take it.
const VECTOR: libc::c_uint = 16;
const _: () = assert!(VECTOR as usize == BATCH);

/// Room for one IP_PKTINFO or IPV6_PKTINFO control message: header 16, `in6_pktinfo` 20, alignment.
const CONTROL: usize = 64;

/// The local end of a query on a wildcard socket; the reply must leave from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalEnd {
    address: IpAddr,
    interface: u32,
}

/// Buffers for one round of receiving and sending. About 70 KiB; one for each worker thread.
pub struct Batch {
    buffers: Box<[[u8; BUFFER]; BATCH]>,
    peers: [libc::sockaddr_storage; BATCH],
    controls: [ControlBuffer; BATCH],
    /// As filled by `recvmmsg`.
    received: [Received; BATCH],
    /// Length of the reply in each buffer; 0 means that none is sent now.
    replies: [usize; BATCH],
}

#[derive(Clone, Copy, Default)]
struct Received {
    length: usize,
    peer_length: libc::socklen_t,
    control_length: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL]);

const _: () = assert!(align_of::<ControlBuffer>() >= align_of::<libc::cmsghdr>());

impl Batch {
    /// Empty buffers.
    #[expect(clippy::new_without_default, reason = "70 KiB should be asked for by name")]
    pub fn new() -> Self {
        // SAFETY: sockaddr_storage is plain old data, for which all zeros is a value (family AF_UNSPEC).
        let no_peer: libc::sockaddr_storage = unsafe { mem::zeroed() };
        Self {
            buffers: Box::new([[0; BUFFER]; BATCH]),
            peers: [no_peer; BATCH],
            controls: [ControlBuffer([0; CONTROL]); BATCH],
            received: [Received::default(); BATCH],
            replies: [0; BATCH],
        }
    }

    /// Receives what is there, at most [`BATCH`] packets, without waiting. `with_local_end`: the socket is bound to a
    /// wildcard address and reports the local end of each packet.
    ///
    /// # Errors
    /// As `recvmmsg(2)`; `WouldBlock` when nothing is there.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, with_local_end: bool) -> io::Result<usize> {
        self.receive_with(socket, with_local_end, VECTOR, 0)
    }

    /// Copies the first packet and leaves it in the socket's queue, where another process finds it should this one die;
    /// [`take_first`] takes it out. Otherwise as [`Batch::receive`].
    ///
    /// # Errors
    /// As there.
    pub fn peek(&mut self, socket: BorrowedFd<'_>, with_local_end: bool) -> io::Result<usize> {
        self.receive_with(socket, with_local_end, 1, libc::MSG_PEEK)
    }

    fn receive_with(
        &mut self,
        socket: BorrowedFd<'_>,
        with_local_end: bool,
        most: libc::c_uint,
        flags: libc::c_int,
    ) -> io::Result<usize> {
        self.replies = [0; BATCH];
        let mut vectors = [MaybeUninit::<libc::iovec>::uninit(); BATCH];
        let mut messages = [MaybeUninit::<libc::mmsghdr>::uninit(); BATCH];
        for (index, message) in messages.iter_mut().enumerate() {
            #[expect(clippy::indexing_slicing, reason = "all arrays have BATCH places")]
            {
                let vector = vectors[index].write(libc::iovec {
                    iov_base: self.buffers[index].as_mut_ptr().cast(),
                    iov_len: BUFFER,
                });
                // SAFETY: msghdr is plain old data; musl and glibc pad it differently, so it is zeroed first.
                let mut header: libc::msghdr = unsafe { mem::zeroed() };
                header.msg_name = (&raw mut self.peers[index]).cast();
                header.msg_namelen = socklen_of::<libc::sockaddr_storage>();
                header.msg_iov = vector;
                header.msg_iovlen = 1;
                if with_local_end {
                    header.msg_control = self.controls[index].0.as_mut_ptr().cast();
                    header.msg_controllen = CONTROL as _;
                }
                message.write(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
            }
        }
        // SAFETY: `messages` are BATCH initialised headers, of which `most` are used (1 or all), whose pointers lead into `self` and `vectors`, which both
        // outlive the call; their lengths are those of the buffers.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr().cast(),
                most.min(VECTOR),
                (libc::MSG_DONTWAIT | flags) as _,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (message, received) in messages.iter().zip(&mut self.received).take(count) {
            // SAFETY: all of `messages` was initialised above.
            let message = unsafe { message.assume_init_ref() };
            let cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            *received = Received {
                length: if cut { 0 } else { message.msg_len as usize },
                peer_length: message.msg_hdr.msg_namelen,
                #[allow(
                    clippy::unnecessary_cast,
                    clippy::allow_attributes,
                    reason = "socklen_t on musl, usize on glibc"
                )]
                control_length: if with_local_end { message.msg_hdr.msg_controllen as usize } else { 0 },
            };
        }
        Ok(count)
    }

    /// The buffer of packet `index`, and how many bytes of it are the packet.
    pub fn packet(&mut self, index: usize) -> (&mut [u8], usize) {
        match (self.buffers.get_mut(index), self.received.get(index)) {
            (Some(buffer), Some(received)) => (buffer, received.length),
            _ => (&mut [], 0),
        }
    }

    /// Marks the first `length` bytes of buffer `index` as a reply to be sent.
    pub fn set_reply(&mut self, index: usize, length: usize) {
        if let Some(reply) = self.replies.get_mut(index) {
            *reply = length.min(BUFFER);
        }
    }

    /// Who sent packet `index`.
    pub fn peer(&self, index: usize) -> Option<SocketAddr> {
        to_socket_addr(self.peers.get(index)?)
    }

    /// The local end of packet `index`, where the socket reports it.
    pub fn local_end(&self, index: usize) -> Option<LocalEnd> {
        let length = self.received.get(index)?.control_length;
        let mut bytes = self.controls.get(index)?.0.get(..length)?;
        // Walked by hand: CMSG_NXTHDR wants a msghdr, and these are two layouts that never change.
        while bytes.len() >= size_of::<libc::cmsghdr>() {
            // SAFETY: at least a cmsghdr's bytes are there, and read_unaligned asks for no alignment.
            let header: libc::cmsghdr = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
            #[allow(
                clippy::unnecessary_cast,
                clippy::allow_attributes,
                reason = "socklen_t on musl, usize on glibc"
            )]
            let length = header.cmsg_len as usize;
            let data = bytes.get(size_of::<libc::cmsghdr>()..length)?;
            match (header.cmsg_level, header.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let interface = u32::from_ne_bytes(data.get(..4)?.try_into().ok()?);
                    let address: [u8; 4] = data.get(8..12)?.try_into().ok()?;
                    return Some(LocalEnd { address: IpAddr::V4(Ipv4Addr::from(address)), interface });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let address: [u8; 16] = data.get(..16)?.try_into().ok()?;
                    let interface = u32::from_ne_bytes(data.get(16..20)?.try_into().ok()?);
                    return Some(LocalEnd { address: IpAddr::V6(Ipv6Addr::from(address)), interface });
                }
                _ => bytes = bytes.get(length.next_multiple_of(8)..)?,
            }
        }
        None
    }

    /// Sends the replies among the first `count` buffers, each to where its query came from. A packet that the kernel
    /// refuses is left out; the number of those is returned.
    pub fn send(&mut self, socket: BorrowedFd<'_>, count: usize) -> usize {
        let mut vectors = [MaybeUninit::<libc::iovec>::uninit(); BATCH];
        let mut messages = [MaybeUninit::<libc::mmsghdr>::uninit(); BATCH];
        let mut filled = 0;
        for index in 0..count.min(BATCH) {
            #[expect(
                clippy::indexing_slicing,
                reason = "all arrays have BATCH places, and filled <= index < BATCH"
            )]
            {
                if self.replies[index] == 0 {
                    continue;
                }
                let vector = vectors[filled].write(libc::iovec {
                    iov_base: self.buffers[index].as_mut_ptr().cast(),
                    iov_len: self.replies[index],
                });
                // SAFETY: as in `receive`.
                let mut header: libc::msghdr = unsafe { mem::zeroed() };
                header.msg_name = (&raw mut self.peers[index]).cast();
                header.msg_namelen = self.received[index].peer_length;
                header.msg_iov = vector;
                header.msg_iovlen = 1;
                if let Some(local_end) = self.local_end(index) {
                    let length = write_control(&mut self.controls[index], local_end);
                    header.msg_control = self.controls[index].0.as_mut_ptr().cast();
                    header.msg_controllen = length as _;
                }
                messages[filled].write(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
            }
            filled += 1;
        }
        let mut sent = 0;
        let mut refused = 0;
        while sent < filled {
            // SAFETY: the first `filled` headers are initialised, their pointers lead into `self` and `vectors`, which
            // outlive the call; `sent < filled` keeps the start within the array.
            let result = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    messages.as_mut_ptr().add(sent).cast(),
                    libc::c_uint::try_from(filled - sent).unwrap_or(0),
                    0,
                )
            };
            match usize::try_from(result) {
                Ok(more) if more > 0 => sent += more,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    // The first of the rest was refused (no route back, say): go on behind it.
                    sent += 1;
                    refused += 1;
                }
            }
        }
        refused
    }
}

/// Takes the first packet out of a socket's queue, unread.
pub fn take_first(socket: BorrowedFd<'_>) {
    if rustix::net::recv(socket, &mut [0_u8; 1], rustix::net::RecvFlags::DONTWAIT).is_err() {
        // There is none.
    }
}

/// Sends one reply from the slow side, from `local_end` where the socket is bound to a wildcard address.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn send_reply(
    socket: BorrowedFd<'_>,
    reply: &[u8],
    peer: SocketAddr,
    local_end: Option<LocalEnd>,
) -> io::Result<()> {
    let peer = socket2::SockAddr::from(peer);
    let mut vector = libc::iovec { iov_base: reply.as_ptr().cast_mut().cast(), iov_len: reply.len() };
    let mut control = ControlBuffer([0; CONTROL]);
    // SAFETY: as in `Batch::receive`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = peer.as_ptr().cast_mut().cast();
    header.msg_namelen = peer.len();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if let Some(local_end) = local_end {
        header.msg_controllen = write_control(&mut control, local_end) as _;
        header.msg_control = control.0.as_mut_ptr().cast();
    }
    // SAFETY: all pointers lead to values of this function, which outlive the call; sendmsg writes through none.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns memory that was freed, and that the allocator has kept, to the system. Nothing where the C library has no
/// call for it (musl, which keeps little).
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer, and is safe to call from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the CPU that received a packet choose the socket of a `SO_REUSEPORT` group of `sockets` sockets: `cpus[i]` gets
/// the one that was bound as number `i % sockets`, any other CPU one by its own number. A query is then answered on the
/// core that asked.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn steer_by_cpu(socket: BorrowedFd<'_>, cpus: &[usize], sockets: usize) -> io::Result<()> {
    let program = steering_program(cpus, sockets.max(1));
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program during the call and writes nothing; the length is that of a sock_fprog.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            socklen_of::<libc::sock_fprog>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a socket that is bound to a wildcard address report the local end of each packet.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn report_local_end(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one c_int, whose length is given, during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            socklen_of::<libc::c_int>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `A = cpu; for each (i, cpu): if A == cpu return i % sockets; return A % sockets`, in classic BPF.
fn steering_program(cpus: &[usize], sockets: usize) -> Vec<libc::sock_filter> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const MODULO: u16 = 0x94; // BPF_ALU | BPF_MOD | BPF_K
    const RETURN_A: u16 = 0x16; // BPF_RET | BPF_A
    const CPU: u32 = (-0x1000_i32 + 36).cast_unsigned(); // SKF_AD_OFF + SKF_AD_CPU
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![step(LOAD, 0, 0, CPU)];
    for (index, &cpu) in cpus.iter().enumerate() {
        program.push(step(JUMP_IF_EQUAL, 0, 1, word(cpu)));
        program.push(step(RETURN, 0, 0, word(index % sockets)));
    }
    program.push(step(MODULO, 0, 0, word(sockets)));
    program.push(step(RETURN_A, 0, 0, 0));
    program
}

/// Writes a PKTINFO control message and returns its length with padding.
fn write_control(control: &mut ControlBuffer, local_end: LocalEnd) -> usize {
    let mut data = [0; 20];
    let (level, kind, length) = match local_end.address {
        IpAddr::V4(address) => {
            // in_pktinfo: index, source address, (ignored) destination. No index: the route back is the routing
            // table's affair, and need not be the way that the query came.
            data[4..8].copy_from_slice(&address.octets());
            (libc::IPPROTO_IP, libc::IP_PKTINFO, 12)
        }
        IpAddr::V6(address) => {
            data[..16].copy_from_slice(&address.octets());
            if address.is_unicast_link_local() {
                data[16..].copy_from_slice(&local_end.interface.to_ne_bytes());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20)
        }
    };
    let header_length = size_of::<libc::cmsghdr>();
    // SAFETY: cmsghdr is plain old data; musl pads it, so it is zeroed first.
    let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
    header.cmsg_len = (header_length + length) as _;
    header.cmsg_level = level;
    header.cmsg_type = kind;
    // SAFETY: the buffer has CONTROL (64) bytes, aligned for a cmsghdr, which has 16.
    unsafe { control.0.as_mut_ptr().cast::<libc::cmsghdr>().write(header) };
    #[expect(clippy::indexing_slicing, reason = "16 + 20 is less than CONTROL, and length at most 20")]
    control.0[header_length..header_length + length].copy_from_slice(&data[..length]);
    (header_length + length).next_multiple_of(8)
}

fn to_socket_addr(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which of the two layouts it is, and sockaddr_storage is aligned for both.
            let address: &libc::sockaddr_in = unsafe { &*(&raw const *storage).cast() };
            let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address: &libc::sockaddr_in6 = unsafe { &*(&raw const *storage).cast() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            let port = u16::from_be(address.sin6_port);
            Some(SocketAddrV6::new(ip, port, address.sin6_flowinfo, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn socklen_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_batch_brings_each_reply_back_to_its_sender() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(address).unwrap();
            let clients: Vec<UdpSocket> = (0..5).map(|_| UdpSocket::bind(address).unwrap()).collect();
            for (number, client) in clients.iter().enumerate() {
                client.send_to(&[u8::try_from(number).unwrap(); 20], server.local_addr().unwrap()).unwrap();
            }
            let mut batch = Batch::new();
            let count = batch.receive(server.as_fd(), false).unwrap();
            assert_eq!(count, 5);
            for (index, client) in clients.iter().enumerate() {
                assert_eq!(batch.peer(index), Some(client.local_addr().unwrap()));
                let (buffer, length) = batch.packet(index);
                assert_eq!(length, 20);
                buffer[0] += 100;
                // The third is left for later.
                batch.set_reply(index, if index == 2 { 0 } else { 10 });
            }
            assert_eq!(batch.send(server.as_fd(), count), 0);
            for (number, client) in clients.iter().enumerate().filter(|(number, _)| *number != 2) {
                let mut reply = [0; 64];
                let length = client.recv(&mut reply).unwrap();
                let number = u8::try_from(number).unwrap();
                assert_eq!((length, reply[0], reply[1]), (10, 100 + number, number));
            }
        }
    }

    #[test]
    fn a_packet_that_was_only_looked_at_is_there_until_it_is_taken() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for packet in [b"first".as_slice(), b"", b"third"] {
            client.send_to(packet, server.local_addr().unwrap()).unwrap();
        }
        let mut batch = Batch::new();
        for expected in [b"first".as_slice(), b"", b"third"] {
            for _ in 0..2 {
                assert_eq!(batch.peek(server.as_fd(), false).unwrap(), 1);
                let (buffer, length) = batch.packet(0);
                assert_eq!(&buffer[..length], expected);
                assert_eq!(batch.peer(0), Some(client.local_addr().unwrap()));
            }
            take_first(server.as_fd());
        }
        assert_eq!(batch.peek(server.as_fd(), false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        take_first(server.as_fd());
    }

    #[test]
    fn a_wildcard_socket_answers_from_the_address_that_was_asked() {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        report_local_end(socket.as_fd(), false).unwrap();
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked = SocketAddr::from(([127, 0, 0, 77], port));
        client.send_to(b"first", asked).unwrap();
        client.send_to(b"second", asked).unwrap();
        let mut batch = Batch::new();
        let mut seen = 0;
        while seen < 2 {
            let count = batch.receive(socket.as_fd(), true).unwrap();
            for index in 0..count {
                let local_end = batch.local_end(index).unwrap();
                assert_eq!(local_end.address, asked.ip());
                if seen + index == 0 {
                    batch.set_reply(index, 5);
                } else {
                    send_reply(socket.as_fd(), b"late", batch.peer(index).unwrap(), Some(local_end)).unwrap();
                }
            }
            batch.send(socket.as_fd(), count);
            seen += count;
        }
        for _ in 0..2 {
            let (_, from) = client.recv_from(&mut [0; 64]).unwrap();
            assert_eq!(from, asked);
        }
    }

    #[test]
    fn the_kernel_takes_a_steering_program_for_any_cpus() {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        steer_by_cpu(socket.as_fd(), &[0], 1).unwrap();
        steer_by_cpu(socket.as_fd(), &(0..256).collect::<Vec<_>>(), 64).unwrap();
    }
}
