//! How sockets go from the kernel's sight without a query that is lost.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::thread::{MembarrierCommand, membarrier};
use socket2::SockRef;

use super::Listeners;
use crate::privileges;

/// How long a packet may take through the kernel, where the kernel does not say when it is through: a thousand times what
/// one takes.
const ON_THEIR_WAY: Duration = Duration::from_millis(20);

impl Listeners {
    /// Before [`Listeners::stop`], where no other process has our sockets: from now on new queries find no listener, and
    /// those that have found one are answered.
    ///
    /// The order makes it whole. First the rules of the kernel's fail-open pass our sockets by, while these still take what
    /// is past the rules; then the sockets take nothing more. Each step waits for the packets that the step before came
    /// too late for.
    pub async fn turn_away(&self) {
        if self.shared.has_stand_by.load(Relaxed) {
            return;
        }
        match self.be_passed_by() {
            Ok(()) => {}
            // Who may not do it has, as a rule, no rules that would ask for it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::debug!(%error, "not passed by");
            }
            Err(error) => {
                tracing::warn!(%error, "queries that come in the moment in which this resolver stops may be lost");
            }
        }
        packets_on_their_way().await;
        for (address, bound) in &self.bound {
            for listener in &bound.udp {
                if let Err(error) = listener.turn_away() {
                    // Then they wait in vain until the socket closes, as long as something is under way.
                    tracing::warn!(%address, %error, "queries that come while this resolver stops may be lost");
                }
            }
        }
        packets_on_their_way().await;
    }

    /// Marks all sockets so that the rules treat them as absent. A mark that the rules of every kernel can ask for, and that
    /// changes nothing else for a socket that is bound already; it needs NET_ADMIN. No rules of ours, no difference.
    fn be_passed_by(&self) -> io::Result<()> {
        let sockets = self.bound.values().flat_map(|bound| {
            let udp = bound.udp.iter().map(|udp| udp.as_fd());
            udp.chain([bound.tcp.as_fd()])
        });
        let sockets = sockets.map(|socket| socket.try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
        // On a socket of IPv6 it is the same option: the kernel takes this level's for both.
        let mark = move || sockets.iter().try_for_each(|it| SockRef::from(it).set_ip_transparent_v4(true));
        privileges::call(mark)
    }
}

/// Waits until every packet that the kernel had in hand has arrived where it was going: in a socket's queue, or nowhere.
///
/// `membarrier(2)` waits, by the kernel's `synchronize_rcu`, until each processor has left what it was doing inside the
/// kernel's network code; also a virtual one that is stopped in the midst of it. Where it is refused, a moment must do.
async fn packets_on_their_way() {
    let wait = || membarrier(MembarrierCommand::Global);
    if !matches!(tokio::task::spawn_blocking(wait).await, Ok(Ok(()))) {
        tokio::time::sleep(ON_THEIR_WAY).await;
    }
}
