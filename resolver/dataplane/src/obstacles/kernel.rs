//! Reads what the judge wants to see of nftables, and no more: base chains, then the bodies of chains and the sets that
//! our packets come to.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Error;
use super::attributes::{Attributes, append_text};
use super::decode;
use super::judge::Wants;
use super::model::{BaseChain, ChainId, Element, Rule, Scope, Set, SetId, Table, World};

/// The kernel answers inside the system call; this is only for a kernel that does not answer at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// A dump that somebody else's change interrupted is asked for again this many times.
const TRIES: usize = 8;
/// Messages of one dump. A node with 10,000 Services has some 30,000 chains.
const MAX_MESSAGES: usize = 400_000;
/// Rules that are kept of one chain, and elements of one set. A longer list is judged as far as it goes.
const MAX_RULES: usize = 50_000;
const MAX_ELEMENTS: usize = 20_000;

const SUBSYSTEM_NFTABLES: u16 = 10;
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const FLAG_REQUEST: u16 = 0x01;
const FLAG_DUMP: u16 = 0x300;
const FLAG_INTERRUPTED: u16 = 0x10;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
/// `NFT_MSG_*`.
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
/// Attributes in requests.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;

/// The chains at the hooks of all tables. A kernel without nf_tables has none.
pub(super) async fn base_chains() -> Result<Vec<BaseChain>, Error> {
    let mut found = Vec::new();
    let request = request(0, GET_CHAIN, FLAG_DUMP, |_| {});
    let result = exchange(&request, |family, octets| {
        found.extend(decode::base_chain(family, octets));
    })
    .await;
    match result {
        Err(Error::Refused { cause, .. })
            if matches!(
                cause.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT)
            ) =>
        {
            Ok(Vec::new())
        }
        result => result.map(|_| found),
    }
}

/// Reads what is wanted into the world. Returns whether anything was longer than we read.
pub(super) async fn read(world: &mut World, wants: Wants) -> Result<bool, Error> {
    let mut is_partial = false;
    for id in wants.chains {
        let rules = body(&id, &mut is_partial).await?;
        world.bodies.insert(id, rules);
    }
    for id in wants.sets {
        let set = contents(&id, &mut is_partial).await?;
        world.sets.insert(id, set);
    }
    Ok(is_partial)
}

async fn body(id: &ChainId, is_partial: &mut bool) -> Result<Vec<Rule>, Error> {
    let request = request(family(&id.table), GET_RULE, FLAG_DUMP, |message| {
        append_text(message, RULE_TABLE, &id.table.name);
        append_text(message, RULE_CHAIN, &id.name);
    });
    let mut rules = Vec::new();
    exchange(&request, |_, octets| {
        // A kernel that gives more than was asked for.
        if Attributes(octets).text(RULE_CHAIN).as_deref() != Some(&id.name) {
            return;
        }
        if rules.len() == MAX_RULES {
            *is_partial = true;
        } else {
            rules.push(decode::rule(octets));
        }
    })
    .await?;
    Ok(rules)
}

async fn contents(id: &SetId, is_partial: &mut bool) -> Result<Set, Error> {
    let name = |message: &mut Vec<u8>| {
        append_text(message, SET_TABLE, &id.table.name);
        append_text(message, SET_NAME, &id.name);
    };
    let mut described = None;
    exchange(&request(family(&id.table), GET_SET, 0, name), |_, octets| {
        described = Some(decode::set(octets));
    })
    .await?;
    // It may be gone by now.
    let Some((mut set, is_of_ends)) = described else { return Ok(Set::default()) };
    let mut raw = Vec::new();
    exchange(&request(family(&id.table), GET_ELEMENTS, FLAG_DUMP, name), |_, octets| {
        if raw.len() <= MAX_ELEMENTS {
            raw.extend(decode::elements(octets));
        }
    })
    .await?;
    if raw.len() > MAX_ELEMENTS {
        *is_partial = true;
        set.elements = None;
    } else {
        set.elements = Some::<Vec<Element>>(decode::join(raw, is_of_ends));
    }
    Ok(set)
}

fn family(table: &Table) -> u8 {
    match table.scope {
        Scope::Ip => decode::FAMILY_IPV4,
        Scope::Ip6 => decode::FAMILY_IPV6,
        Scope::Inet => decode::FAMILY_INET,
    }
}

fn request(family: u8, kind: u16, flags: u16, attributes: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message.extend([family, 0, 0, 0]);
    attributes(&mut message);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let header = [
        length.to_ne_bytes().to_vec(),
        ((SUBSYSTEM_NFTABLES << 8) | kind).to_ne_bytes().to_vec(),
        (FLAG_REQUEST | flags).to_ne_bytes().to_vec(),
        1_u32.to_ne_bytes().to_vec(),
    ]
    .concat();
    for (octet, new) in message.iter_mut().zip(header) {
        *octet = new;
    }
    message
}

/// Sends a request and gives each message of the answer to `take`: its family and attributes. What is not there has no
/// messages. A dump that was interrupted is asked for anew; of an answer that is begun again, `take` sees all.
async fn exchange(request: &[u8], mut take: impl FnMut(u8, &[u8])) -> Result<(), Error> {
    let mut last = io::Error::from(io::ErrorKind::Interrupted);
    for _ in 0..TRIES {
        let mut messages = Vec::new();
        match collect(request, &mut messages).await {
            Ok(true) => {
                for message in &messages {
                    if let [family, _, _, _, attributes @ ..] = message.as_slice() {
                        take(*family, attributes);
                    }
                }
                return Ok(());
            }
            Ok(false) => {}
            // The buffer was too small for what the kernel said at once.
            Err(Error::Socket { cause, .. }) if cause.raw_os_error() == Some(libc::ENOBUFS) => last = cause,
            Err(error) => return Err(error),
        }
    }
    Err(Error::Socket { step: "read the rules of others", cause: last })
}

/// Returns whether the answer is whole.
async fn collect(request: &[u8], messages: &mut Vec<Vec<u8>>) -> Result<bool, Error> {
    let step = "read the rules of others";
    let open = || {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        Ok::<_, io::Error>(socket)
    };
    let socket = open().map_err(|cause| Error::Socket { step: "open a netfilter netlink socket", cause })?;
    socket.send(request).await.map_err(|cause| Error::Socket { step, cause })?;
    // As the request has it: flags are its seventh and eighth octet.
    let is_dump = request.get(6..8) != Some(&FLAG_REQUEST.to_ne_bytes());
    let mut is_whole = true;
    loop {
        let datagram = match tokio::time::timeout(ANSWER_DEADLINE, socket.recv_from_full()).await {
            Err(_) => return Err(Error::NoAnswer),
            Ok(Err(cause)) => return Err(Error::Socket { step, cause }),
            Ok(Ok((datagram, _))) => datagram,
        };
        let mut rest = datagram.as_slice();
        while let Some(header) = rest.get(..HEADER) {
            let field = |at: usize| {
                header.get(at..at + 2).and_then(|octets| octets.try_into().ok()).map_or(0, u16::from_ne_bytes)
            };
            let length =
                header.get(..4).and_then(|octets| octets.try_into().ok()).map_or(0, u32::from_ne_bytes);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(body) = rest.get(HEADER..length) else { break };
            let (kind, flags) = (field(4), field(6));
            is_whole &= flags & FLAG_INTERRUPTED == 0;
            match kind {
                TYPE_DONE => return Ok(is_whole),
                TYPE_ERROR => {
                    let code =
                        body.get(..4).and_then(|octets| octets.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    let cause = io::Error::from_raw_os_error(code.saturating_abs());
                    return match code {
                        0 => Ok(is_whole),
                        _ if cause.raw_os_error() == Some(libc::ENOENT) => Ok(true),
                        _ if cause.raw_os_error() == Some(libc::EINTR) => Ok(false),
                        _ => Err(Error::Refused { step, cause }),
                    };
                }
                _ if messages.len() == MAX_MESSAGES => {
                    return Err(Error::Socket { step, cause: io::ErrorKind::FileTooLarge.into() });
                }
                _ if body.len() >= FAMILY_HEADER => messages.push(body.to_vec()),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if !is_dump {
            return Ok(is_whole);
        }
    }
}

/// Whether anything is still to be read that has not been asked for too often.
pub(super) fn is_within_bounds(world: &World, wants: &Wants, most: usize) -> bool {
    let chains: BTreeSet<_> = wants.chains.iter().collect();
    world.bodies.len() + chains.len() <= most && world.sets.len() + wants.sets.len() <= most
}
