//! Word to the service manager that started us, where one did: systemd's `sd_notify`, which is one datagram.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Queries are answered.
    Serving,
    /// A newer process answers them.
    StandingBy,
    /// The end has begun.
    Stopping,
}

/// Tells it, if there is one. A manager that does not hear is no reason to do anything else.
pub fn tell(word: Word) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(cause) = send(&socket, word.text()) {
        tracing::warn!(%cause, ?word, "the service manager cannot be told");
    }
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Serving => "READY=1\nSTATUS=serving",
            Self::StandingBy => "STATUS=standing by: a newer process serves",
            Self::Stopping => "STOPPING=1\nSTATUS=stopping",
        }
    }
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    // `@` stands for the zero byte of an abstract name.
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager with a full queue must not hold us up.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_arrives_by_a_path_and_by_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("nodestub-test-{}", std::process::id());
        let receivers = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (
                format!("@{name}").into(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            ),
        ];
        for (socket, receiver) in receivers {
            send(&socket, Word::Serving.text()).unwrap();
            let mut heard = [0; 64];
            let length = receiver.recv(&mut heard).unwrap();
            assert_eq!(heard.get(..length).unwrap(), b"READY=1\nSTATUS=serving");
        }
        assert!(send(OsStr::new("/nowhere/at/all"), "x").is_err());
    }
}
