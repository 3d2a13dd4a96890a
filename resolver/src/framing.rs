//! DNS messages on a stream: two bytes of length, then the message (RFC 1035, 4.2.2).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is read at once, in bytes: several pipelined questions, or one answer of a usual size.
const READ: usize = 4096;

/// Takes messages off a stream. What has been read so far is kept when [`FrameReader::next`] is dropped, so it may
/// stand in a `select!` or under a timeout.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Nothing read yet.
    pub fn new(stream: R) -> Self {
        Self::with_buffer(stream, Vec::new())
    }

    /// These bytes have been read already.
    pub fn with_buffer(stream: R, buffer: Vec<u8>) -> Self {
        Self { stream, buffer }
    }

    /// The stream, and what has been read from it and not been taken.
    pub fn into_parts(self) -> (R, Vec<u8>) {
        (self.stream, self.buffer)
    }

    /// The next message, without its length; `None` where the stream ends between two messages.
    ///
    /// # Errors
    /// Reading failed, or the stream ended within a message.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.take_message() {
                return Ok(Some(message));
            }
            self.buffer.reserve(READ);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let clean = self.buffer.is_empty();
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Whether a part of a message has been read.
    pub fn is_within_message(&self) -> bool {
        !self.buffer.is_empty()
    }

    fn take_message(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.buffer.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let message = rest.get(..length)?.to_vec();
        self.buffer.drain(..2 + length);
        Some(message)
    }
}

/// A message with its length in front; one that is too long for that is not a DNS message, and is refused.
pub fn frame(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut frame = Vec::with_capacity(2 + message.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_out_however_the_bytes_came_in() {
        let (client, server) = tokio::io::duplex(3);
        let mut reader = FrameReader::new(server);
        let writer = tokio::spawn(async move {
            let mut client = client;
            let bytes = [frame(b"first").unwrap(), frame(b"").unwrap(), frame(b"second").unwrap()].concat();
            tokio::io::AsyncWriteExt::write_all(&mut client, &bytes).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut client, b"\0").await.unwrap();
        });
        assert_eq!(reader.next().await.unwrap().unwrap(), b"first");
        assert_eq!(reader.next().await.unwrap().unwrap(), b"");
        assert_eq!(reader.next().await.unwrap().unwrap(), b"second");
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        writer.await.unwrap();
    }
}
