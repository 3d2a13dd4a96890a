//! A connection's last moments: what the client still sends is read and thrown away, so that nothing that was said to it
//! is lost.
//!
//! A socket that is closed while bytes lie in it unread, or come later, answers by a reset, and a reset may overtake the
//! last answer: whatever stands between (a proxy, a full queue, a lost packet that is never sent again) gives up what it
//! has. HTTP/2 clients send all the time, if only acknowledgements. So the sending half is closed first, and the socket
//! when the client has closed its own (RFC 9112, 9.6).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client may take to close its half.
const LONGEST: Duration = Duration::from_secs(1);
/// And how much it may send meanwhile, in bytes: more than what is under way on any connection.
const MOST: usize = 1 << 20;

/// A socket that outlives whoever reads and writes it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<TcpStream>);

impl Shared {
    /// Of a socket that was accepted.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Closes our half, and waits until the client has closed its own: a second and a MiB at most.
    pub async fn linger(self) {
        // Both may be closed already: then there is nothing to wait for.
        let _ = shutdown(&*self.0, Shutdown::Write);
        drop(timeout(LONGEST, self.drain()).await);
    }

    async fn drain(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut left = MOST;
        while left > 0 {
            self.0.readable().await?;
            match self.0.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => left = left.saturating_sub(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.0, Shutdown::Write).map_err(Into::into))
    }
}
