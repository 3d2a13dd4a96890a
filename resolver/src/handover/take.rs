//! The newcomer's side: asks, fills its cache while the other one still serves, and gets the sockets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nodestub_corefile::config::Scheme;

use super::link::{Connected, Link, LinkError, Rendezvous};
use super::message::{Message, Refusal, SocketKind};
use super::{HandoverError, Identity, PATIENCE, Pantry};
use crate::admin::Admin;
use crate::listen::{Listeners, Offered, is_free};

/// How long the other process may take to say yes: it may be busy with another newcomer, and its cache is large.
const WELCOME: Duration = Duration::from_secs(60);

/// How long an address may take to become free where nobody hands it over: the one that has it may be stopping.
const RELEASE: Duration = Duration::from_secs(10);

/// Pause before the rendezvous, or an address, is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Attempts to get through a handover; each that fails has met a process that died.
const ATTEMPTS: usize = 5;

/// A newcomer's way in.
#[derive(Debug)]
pub struct Entrance;

/// What a newcomer has found at the rendezvous.
#[derive(Debug)]
enum Found {
    /// Nobody who would hand over.
    Nobody {
        /// Ours from now on; `None`: there is none, or somebody else has it.
        rendezvous: Option<Rendezvous>,
        /// Why whoever is there does not hand over.
        reason: Option<String>,
    },
    /// One who serves, and is ready to give.
    Resolver(Link),
}

/// What a newcomer begins with.
#[derive(Debug, Default)]
pub struct Taken {
    /// DNS sockets.
    pub dns: HashMap<SocketAddr, Offered>,
    /// HTTP sockets.
    pub http: HashMap<SocketAddr, OwnedFd>,
    /// Where the next newcomer will come.
    pub(super) rendezvous: Option<Rendezvous>,
    /// To the one who stands by from now on.
    pub(super) link: Option<Link>,
}

impl Taken {
    /// Hands the sockets on to those who will serve them.
    pub fn offer_to(&mut self, listeners: &mut Listeners, admin: &mut Admin) {
        listeners.offer(std::mem::take(&mut self.dns), self.link.is_some());
        admin.offer(std::mem::take(&mut self.http));
    }
}

impl Entrance {
    /// Asks whoever serves to hand over, fills the pantry, and gets the sockets; from then on the other one stands by.
    /// Where there is nobody, makes sure that `wanted` are free. Nothing is bound but the rendezvous.
    ///
    /// # Errors
    /// Somebody has an address and does not hand it over, or every attempt failed.
    pub async fn enter(
        identity: &Identity,
        pantry: &Pantry,
        wanted: &[(SocketAddr, Scheme)],
    ) -> Result<Taken, HandoverError> {
        if identity.rendezvous.is_none() {
            return Ok(Taken::default());
        }
        let mut taken = Taken::default();
        for _ in 0..ATTEMPTS {
            let link = match knock(identity, pantry).await? {
                Found::Nobody { rendezvous, reason } => {
                    wait_until_free(wanted, &taken, reason.as_deref()).await?;
                    if let Some(reason) = reason {
                        tracing::warn!(reason, "there will be no handover from or to this process");
                    }
                    // What a process has left that died while it gave: whole addresses are of use.
                    // An address's TCP listener comes last.
                    taken.dns.retain(|_, offered| offered.tcp.is_some());
                    taken.rendezvous = rendezvous;
                    return Ok(taken);
                }
                Found::Resolver(link) => link,
            };
            // What an earlier attempt has brought is kept open until this one has brought the same.
            let mut fresh = Taken::default();
            match receive(&link, pantry, &mut fresh).await {
                Ok(()) => {
                    fresh.link = Some(link);
                    return Ok(fresh);
                }
                Err(LinkError::Gone) => {
                    tracing::warn!("the resolver that was handing over has died; asking once more");
                    taken = fresh;
                }
                Err(error) => return Err(HandoverError::Failed(error)),
            }
        }
        Err(HandoverError::Failed(LinkError::Gone))
    }
}

/// Looks who is there, and introduces itself. Nothing changes for the one that serves.
async fn knock(identity: &Identity, pantry: &Pantry) -> Result<Found, HandoverError> {
    let nobody = |reason| Found::Nobody { rendezvous: None, reason: Some(reason) };
    let Some(name) = &identity.rendezvous else {
        return Ok(Found::Nobody { rendezvous: None, reason: None });
    };
    let end = Instant::now() + WELCOME;
    while Instant::now() < end {
        match Link::connect(name) {
            Ok(Connected::Stranger(uid)) => {
                return Ok(nobody(format!("it belongs to user {uid}, whom this one does not trust")));
            }
            Ok(Connected::Nobody) => {
                if let Some(rendezvous) = Rendezvous::claim(name).map_err(HandoverError::Rendezvous)? {
                    return Ok(Found::Nobody { rendezvous: Some(rendezvous), reason: None });
                }
            }
            Ok(Connected::Line(link)) => match introduce(&link, identity, pantry).await {
                Ok(None) => return Ok(Found::Resolver(link)),
                Ok(Some(reason)) => return Ok(nobody(reason)),
                // It has died, or hands over to another: whoever comes after it is asked.
                Err(LinkError::Gone) => {}
                Err(error) => return Ok(nobody(error.to_string())),
            },
            // Too many newcomers wait already.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(HandoverError::Rendezvous(error)),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(HandoverError::Failed(LinkError::Silent))
}

/// Says who we are, and takes the cache. Returns why there is no handover.
async fn introduce(link: &Link, identity: &Identity, pantry: &Pantry) -> Result<Option<String>, LinkError> {
    link.send(&Message::Hello(identity.greeting()), &[], PATIENCE).await?;
    let theirs = match link.receive_within(WELCOME).await?.0 {
        Message::Welcome(theirs) => theirs,
        Message::Refused(refusal, theirs) => {
            return Ok(Some(match refusal {
                Refusal::Protocol => format!(
                    "it speaks protocol {} of the handover (version {}), this one {}",
                    theirs.protocol,
                    theirs.version,
                    identity.greeting().protocol
                ),
                Refusal::NotNewer => "it has started after this one".to_owned(),
                Refusal::NotNow => "it cannot now".to_owned(),
            }));
        }
        other => return Err(LinkError::Unexpected(other.name())),
    };
    if theirs.protocol != identity.greeting().protocol {
        return Ok(Some(format!(
            "it speaks protocol {} of the handover (version {})",
            theirs.protocol, theirs.version
        )));
    }
    let mut warm = 0;
    loop {
        match link.receive_within(PATIENCE).await?.0 {
            Message::Cache { at, entries } => warm += pantry.keep(at, &entries),
            Message::Warm => break,
            other => return Err(LinkError::Unexpected(other.name())),
        }
    }
    tracing::info!(version = theirs.version, answers = warm, "another resolver serves; it will hand over");
    Ok(None)
}

async fn receive(link: &Link, pantry: &Pantry, taken: &mut Taken) -> Result<(), LinkError> {
    link.send(&Message::Ready, &[], PATIENCE).await?;
    loop {
        let (message, mut descriptors) = link.receive_within(PATIENCE).await?;
        match message {
            Message::Socket { kind: SocketKind::Udp, address, .. } => {
                taken.dns.entry(address).or_default().udp.append(&mut descriptors);
            }
            Message::Socket { kind: SocketKind::Tcp, address, .. } => {
                taken.dns.entry(address).or_default().tcp = descriptors.pop();
            }
            Message::Socket { kind: SocketKind::Http, address, .. } => {
                if let Some(socket) = descriptors.pop() {
                    taken.http.insert(address, socket);
                }
            }
            Message::Cache { at, entries } => {
                pantry.keep(at, &entries);
            }
            Message::Yours => {
                let rendezvous = descriptors.pop().map(Rendezvous::from_fd).transpose();
                taken.rendezvous = rendezvous.map_err(LinkError::System)?;
                return Ok(());
            }
            other => return Err(LinkError::Unexpected(other.name())),
        }
    }
}

/// Sockets of our own user share an address without a word (`SO_REUSEPORT`), and each would get a part of the queries:
/// so nobody else may have it. A process that gave a reason does not stop soon; any other may be about to.
async fn wait_until_free(
    wanted: &[(SocketAddr, Scheme)],
    taken: &Taken,
    reason: Option<&str>,
) -> Result<(), HandoverError> {
    let end = Instant::now() + if reason.is_some() { Duration::ZERO } else { RELEASE };
    for (address, scheme) in wanted.iter().filter(|(address, _)| !taken.dns.contains_key(address)) {
        while !is_free(*address, *scheme) {
            if Instant::now() >= end {
                return Err(HandoverError::InUse { address: *address, reason: reason.map(str::to_owned) });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
