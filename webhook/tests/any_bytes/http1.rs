//! Bytes that are HTTP/1.1, or nearly.

use proptest::prelude::*;

use crate::common::client::SERVICE;
use crate::{MAX_BODY_BYTES, any_length, damaged};

/// A good review, on a connection that stays.
pub(crate) fn request(body: &[u8]) -> Vec<u8> {
    with(&format!("content-length: {}\r\n", body.len()), body)
}

/// The same in chunks.
pub(crate) fn chunked(body: &[u8]) -> Vec<u8> {
    let chunks: Vec<u8> = body
        .chunks(100)
        .flat_map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat())
        .collect();
    with("transfer-encoding: chunked\r\n", &[&chunks[..], b"0\r\n\r\n"].concat())
}

fn with(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: {SERVICE}\r\ncontent-type: application/json\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn anything(review: &[u8]) -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        damaged(request(review)),
        damaged(chunked(review)),
        // Several, one behind the other.
        damaged(request(review).repeat(3)),
        any_head(),
        large_head(),
        wrong_length(review.to_vec()),
        any_chunks(),
    ]
    .boxed()
}

/// Words where HTTP has words, but any.
fn any_head() -> BoxedStrategy<Vec<u8>> {
    let word = || {
        prop_oneof![
            2 => "[!-~]{0,20}",
            1 => Just("/mutate".to_owned()),
            1 => Just("POST".to_owned()),
            1 => Just("HTTP/1.1".to_owned()),
            1 => any::<String>(),
        ]
    };
    let one_of = |words: &[&'static str]| prop::sample::select(words.to_vec()).prop_map(str::to_owned);
    let name = prop_oneof![
        one_of(&[
            "content-length",
            "transfer-encoding",
            "content-type",
            "connection",
            "upgrade",
            "expect",
            "http2-settings"
        ]),
        word(),
    ];
    let value = prop_oneof![
        one_of(&["chunked", "application/json", "upgrade, http2-settings", "h2c", "100-continue"]),
        "[0-9]{1,25}",
        any::<String>(),
    ];
    let line_end = || prop_oneof![9 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("")];
    let headers = prop::collection::vec((name, value, line_end()), 0..12);
    let first = (word(), word(), word(), line_end());
    (first, headers, line_end(), prop::collection::vec(any::<u8>(), 0..300))
        .prop_map(|((method, target, version, line_end), headers, last, body)| {
            let mut head = format!("{method} {target} {version}{line_end}");
            for (name, value, line_end) in headers {
                head.push_str(&format!("{name}: {value}{line_end}"));
            }
            head.push_str(last);
            [head.as_bytes(), &body].concat()
        })
        .boxed()
}

/// Above the head's bound in bytes, in number, or in both; a MiB at most.
fn large_head() -> BoxedStrategy<Vec<u8>> {
    let count = prop_oneof![1..4_usize, 90..3000_usize];
    let length = prop_oneof![0..10_usize, 5000..40_000_usize];
    (count, length, any::<bool>())
        .prop_map(|(count, length, is_ended)| {
            let value = "a".repeat(length.min((1 << 20) / count));
            let headers: String = (0..count).map(|number| format!("x-{number}: {value}\r\n")).collect();
            format!("POST /mutate HTTP/1.1\r\n{headers}{}", if is_ended { "\r\n" } else { "" }).into_bytes()
        })
        .boxed()
}

/// A content length that is not the body's, or is none, alone and beside another one or chunks.
fn wrong_length(review: Vec<u8>) -> BoxedStrategy<Vec<u8>> {
    let length = review.len();
    let said = prop_oneof![
        2 => any_length(length),
        1 => prop::sample::select(vec![
            MAX_BODY_BYTES.to_string(),
            (MAX_BODY_BYTES + 1).to_string(),
            u64::MAX.to_string(),
            format!("+{length}"),
            format!("{length}, {length}"),
            format!("{length}\r\ncontent-length: {}", length - 1),
            format!("{length}\r\ntransfer-encoding: chunked"),
            format!("{length}\r\ntransfer-encoding: gzip"),
        ]),
        1 => any::<String>(),
    ];
    (said, any::<bool>())
        .prop_map(move |(said, is_followed)| {
            let bytes = with(&format!("content-length: {said}\r\n"), &review);
            // Where one request ends and the next begins is then a matter of opinion.
            if is_followed { [bytes, request(&review)].concat() } else { bytes }
        })
        .boxed()
}

fn any_chunks() -> BoxedStrategy<Vec<u8>> {
    let size = prop_oneof![
        4 => (0..100_usize).prop_map(|size| format!("{size:x}")),
        1 => any::<u128>().prop_map(|size| format!("{size:x}")),
        1 => (0..30_000_usize).prop_map(|length| format!("5;{}", "e".repeat(length))),
        1 => (0..5000_usize).prop_map(|length| "0".repeat(length)),
        1 => any::<String>(),
    ];
    let data = prop::collection::vec(any::<u8>(), 0..100);
    let chunk = (size, data, prop::bool::weighted(0.6), prop::bool::weighted(0.9)).prop_map(
        |(size, data, is_right, is_ended)| {
            let size = if is_right { format!("{:x}", data.len()) } else { size };
            [size.as_bytes(), b"\r\n", &data, if is_ended { b"\r\n" } else { b"" }].concat()
        },
    );
    let trailers = prop_oneof![
        Just("0\r\n\r\n".to_owned()),
        any::<String>().prop_map(|text| format!("0\r\n{text}\r\n\r\n")),
        (0..2000_usize).prop_map(|count| format!("0\r\n{}\r\n", "t: v\r\n".repeat(count))),
        Just(String::new()),
    ];
    (prop::collection::vec(chunk, 0..20), trailers)
        .prop_map(|(chunks, trailers)| {
            with("transfer-encoding: chunked\r\n", &[&chunks.concat()[..], trailers.as_bytes()].concat())
        })
        .boxed()
}
