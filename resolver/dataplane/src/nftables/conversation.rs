//! The exchange with the kernel: a transaction with an acknowledgement for each step, and dumps.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Error;

/// The kernel answers inside the system call; this is only for a kernel that does not answer at all.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// `NFNL_SUBSYS_NFTABLES`: what a batch is for, in its first and last message.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// A dump that somebody else's change interrupted is asked for again this many times.
const DUMP_TRIES: usize = 8;

/// A message of a transaction and its name in errors.
pub(super) struct Step {
    name: String,
    message: NfTablesMessage,
}

impl Step {
    pub(super) fn new(name: impl Into<String>, message: NfTablesMessage) -> Self {
        Self { name: name.into(), message }
    }
}

/// Sends the steps between a batch's begin and end, and waits for the end.
///
/// Refusals come in any case. Only the last step asks for an acknowledgement, which comes after all refusals: one for
/// each step would not fit the receive buffer when there are hundreds.
pub(super) async fn transact(steps: Vec<Step>) -> Result<(), Error> {
    let bracket = |control| {
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES),
            control,
        )
    };
    // Sequence number 0 is the batch as a whole, and step n has n + 1.
    let mut names = vec!["the transaction".to_owned()];
    let mut bytes = Vec::new();
    append(&mut bytes, bracket(ControlMessage::BatchBegin), NLM_F_REQUEST, 0);
    let last = steps.len();
    for step in steps {
        let sequence = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let acknowledged = if names.len() == last { NLM_F_ACK } else { 0 };
        names.push(step.name);
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND | acknowledged;
        append(&mut bytes, NetfilterMessage::new(header, step.message), flags, sequence);
    }
    append(&mut bytes, bracket(ControlMessage::BatchEnd), NLM_F_REQUEST, 0);

    let socket = connect()?;
    send(&socket, &bytes, "send the transaction").await?;
    loop {
        for message in receive(&socket, "receive the acknowledgement").await? {
            let NetlinkPayload::Error(answer) = message.payload else { continue };
            let index = usize::try_from(message.header.sequence_number).unwrap_or(usize::MAX);
            if answer.code.is_some() {
                let step = names.get(index).cloned().unwrap_or_else(|| "an unknown step".to_owned());
                return Err(Error::Refused { step, cause: answer.to_io() });
            }
            if index == last {
                return Ok(());
            }
        }
    }
}

/// Asks for a dump, again when a change by somebody else interrupted it.
pub(super) async fn dump(
    step: &'static str,
    request: NfTablesMessage,
) -> Result<Vec<NfTablesMessage>, Error> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut bytes = Vec::new();
    append(&mut bytes, NetfilterMessage::new(header, request), NLM_F_REQUEST | NLM_F_DUMP, 1);
    for _ in 0..DUMP_TRIES {
        let socket = connect()?;
        send(&socket, &bytes, step).await?;
        if let Some(messages) = collect(&socket, step).await? {
            return Ok(messages);
        }
    }
    Err(Error::Socket { step, cause: io::ErrorKind::Interrupted.into() })
}

/// The messages of a dump; `None` when it was interrupted.
async fn collect(socket: &TokioSocket, step: &'static str) -> Result<Option<Vec<NfTablesMessage>>, Error> {
    let mut found = Vec::new();
    let mut interrupted = false;
    loop {
        for message in receive(socket, step).await? {
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(message),
                    ..
                }) => found.push(message),
                NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                NetlinkPayload::Error(answer) => match answer.code {
                    // The table, or the chain, is not there: nothing to list.
                    Some(_) if answer.to_io().raw_os_error() == Some(libc::ENOENT) => {
                        return Ok(Some(Vec::new()));
                    }
                    Some(_) => return Err(Error::Refused { step: step.to_owned(), cause: answer.to_io() }),
                    None => {}
                },
                _ => {}
            }
        }
    }
}

fn connect() -> Result<TokioSocket, Error> {
    let open = || {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        // Refusals quote only the header of what they refuse, so many fit the receive buffer.
        socket.socket_ref().set_cap_ack(true)?;
        Ok::<_, io::Error>(socket)
    };
    open().map_err(|cause| Error::Socket { step: "open a netfilter netlink socket", cause })
}

async fn send(socket: &TokioSocket, bytes: &[u8], step: &'static str) -> Result<(), Error> {
    match tokio::time::timeout(ANSWER_DEADLINE, socket.send(bytes)).await {
        Err(_) => Err(Error::NoAnswer),
        Ok(Err(cause)) => Err(Error::Socket { step, cause }),
        Ok(Ok(_)) => Ok(()),
    }
}

async fn receive(
    socket: &TokioSocket,
    step: &'static str,
) -> Result<Vec<NetlinkMessage<NetfilterMessage>>, Error> {
    let datagram = match tokio::time::timeout(ANSWER_DEADLINE, socket.recv_from_full()).await {
        Err(_) => return Err(Error::NoAnswer),
        Ok(Err(cause)) => return Err(Error::Socket { step, cause }),
        Ok(Ok((datagram, _))) => datagram,
    };
    let mut rest = datagram.as_slice();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(Error::Garbled)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(1);
        messages.push(message);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
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
