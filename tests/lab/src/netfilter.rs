//! Netfilter netlink, as much as the laboratory needs: one batch with acknowledgements, one dump.
//!
//! Blocking, and in the namespace of the calling thread.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::Error;

/// `NFNL_SUBSYS_NFTABLES`: what a batch is for, in its first and last message.
const SUBSYSTEM_NFTABLES: u16 = 10;

/// Sends nftables messages as one transaction; any refusal fails the whole.
pub(crate) fn transact(family: NetfilterProtoFamily, messages: Vec<NfTablesMessage>) -> Result<(), Error> {
    let socket = connect()?;
    let mut bytes = Vec::new();
    let mut sequence = 0;
    let bracket = |control| {
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES),
            control,
        )
    };
    append(&mut bytes, bracket(ControlMessage::BatchBegin), NLM_F_REQUEST, sequence);
    let expected = messages.len();
    for message in messages {
        sequence += 1;
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        append(
            &mut bytes,
            NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message),
            flags,
            sequence,
        );
    }
    append(&mut bytes, bracket(ControlMessage::BatchEnd), NLM_F_REQUEST, sequence + 1);
    socket.send(&bytes, 0).map_err(Error::at("send an nftables batch"))?;

    let mut acknowledged = 0;
    while acknowledged < expected {
        for message in receive(&socket)? {
            if let NetlinkPayload::Error(answer) = message.payload {
                if answer.code.is_some() {
                    return Err(Error::caused("apply an nftables batch", answer.to_io()));
                }
                acknowledged += 1;
            }
        }
    }
    Ok(())
}

/// Asks for a dump and returns its messages.
pub(crate) fn dump(request: NetfilterMessage) -> Result<Vec<NetfilterMessageInner>, Error> {
    let socket = connect()?;
    let mut bytes = Vec::new();
    append(&mut bytes, request, NLM_F_REQUEST | NLM_F_DUMP, 1);
    socket.send(&bytes, 0).map_err(Error::at("ask for a netfilter dump"))?;
    let mut found = Vec::new();
    loop {
        for message in receive(&socket)? {
            match message.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message.inner),
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(answer) if answer.code.is_some() => {
                    return Err(Error::caused("read a netfilter dump", answer.to_io()));
                }
                _ => {}
            }
        }
    }
}

/// Asks one thing and waits for the acknowledgement.
pub(crate) fn ask(request: NetfilterMessage) -> Result<(), Error> {
    let socket = connect()?;
    let mut bytes = Vec::new();
    append(&mut bytes, request, NLM_F_REQUEST | NLM_F_ACK, 1);
    socket.send(&bytes, 0).map_err(Error::at("send a netfilter request"))?;
    loop {
        for message in receive(&socket)? {
            if let NetlinkPayload::Error(answer) = message.payload {
                return match answer.code {
                    None => Ok(()),
                    Some(_) => Err(Error::caused("carry out a netfilter request", answer.to_io())),
                };
            }
        }
    }
}

fn connect() -> Result<Socket, Error> {
    let open = || {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok::<_, std::io::Error>(socket)
    };
    open().map_err(Error::at("open a netfilter netlink socket"))
}

fn append(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    // Messages of one datagram start at multiples of four.
    buffer.resize(buffer.len().next_multiple_of(4), 0);
    bytes.append(&mut buffer);
}

fn receive(socket: &Socket) -> Result<Vec<NetlinkMessage<NetfilterMessage>>, Error> {
    let (datagram, _) = socket.recv_from_full().map_err(Error::at("receive from netfilter"))?;
    let mut rest = datagram.as_slice();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .map_err(Error::at("parse a netfilter message"))?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(1);
        messages.push(message);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}
