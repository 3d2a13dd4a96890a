//! As much HTTP/1.1 as an API server and a Prometheus need here: one request, one answer, then the connection closes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nodestub_lab::Error;

/// For one read or write.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 200 and its like.
    pub(crate) status: u16,
    /// As text.
    pub(crate) body: String,
}

/// Connects with a deadline on everything that follows.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream, Error> {
    let step = || format!("connect to {address}");
    let stream =
        TcpStream::connect_timeout(&address, TIMEOUT).map_err(|error| Error::caused(step(), error))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)))
        .map_err(|error| Error::caused(step(), error))?;
    Ok(stream)
}

/// Fetches a page, which must be a 200.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, Error> {
    let answer = exchange(&mut connect(address)?, "GET", &address.to_string(), path, None)?;
    if answer.status == 200 {
        Ok(answer.body)
    } else {
        Err(Error::new(format!(
            "get http://{address}{path}: status {}: {}",
            answer.status,
            answer.body.trim()
        )))
    }
}

/// Sends a request, with a JSON body if there is one, and reads the answer to its end.
pub(crate) fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    host: &str,
    path: &str,
    json: Option<&[u8]>,
) -> Result<Answer, Error> {
    let step = || format!("{method} {host}{path}");
    let body = json.unwrap_or_default();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    if json.is_some() {
        request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    let mut raw = Vec::new();
    stream
        .write_all(&[request.as_bytes(), body].concat())
        .and_then(|()| stream.flush())
        .and_then(|()| stream.take(MAX_ANSWER_BYTES).read_to_end(&mut raw))
        .map_err(|error| Error::caused(step(), error))?;
    parse(&raw).map_err(|error| Error::caused(step(), error))
}

fn parse(raw: &[u8]) -> Result<Answer, Error> {
    let text = String::from_utf8_lossy(raw);
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| Error::new("the answer has no end of its head"))?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| Error::new("the answer is not HTTP/1.1"))?;
    let header = |wanted: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    if header("transfer-encoding").is_some() {
        return Err(Error::new("the answer comes in chunks, which the demo does not read"));
    }
    let length = header("content-length").and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(Error::new("the answer broke off"));
    }
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_status_and_body() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        assert_eq!(answer, Answer { status: 200, body: "ok".to_owned() });
        assert_eq!(parse(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap().status, 404);
    }

    #[test]
    fn rejects_what_is_no_whole_answer() {
        for raw in [
            &b""[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            parse(raw).unwrap_err();
        }
    }
}
