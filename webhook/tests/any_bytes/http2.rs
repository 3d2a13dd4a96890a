//! Bytes that are HTTP/2, or nearly: RFC 9113 for frames, RFC 7541 for headers. By hand, for a library would refuse to make
//! most of what is sent here.

use proptest::prelude::*;

use crate::common::client::SERVICE;
use crate::{MAX_BODY_BYTES, any_length, damaged};

/// RFC 9113, 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame that says it is that long.
fn frame_of(length: usize, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(length).unwrap().to_be_bytes();
    [&[high, middle, low, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    frame_of(payload.len(), kind, flags, stream, payload)
}

/// The preface and empty SETTINGS.
fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()
}

/// A literal header that is not indexed (RFC 7541, 6.2.2); name and value below 127 bytes.
fn header(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    [&[0, length(name)][..], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

fn headers(content_length: &str) -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "https"),
        header(":path", "/mutate"),
        header(":authority", SERVICE),
        header("content-type", "application/json"),
        header("content-length", content_length),
    ]
    .concat()
}

/// The two frames of a request on that stream.
fn frames(stream: u32, content_length: &str, body: &[u8]) -> [Vec<u8>; 2] {
    [frame(HEADERS, END_HEADERS, stream, &headers(content_length)), frame(DATA, END_STREAM, stream, body)]
}

/// A good review, from the preface on.
pub(crate) fn request(body: &[u8]) -> Vec<u8> {
    [opening(), frames(1, &body.len().to_string(), body).concat()].concat()
}

pub(crate) fn anything(review: &[u8]) -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        damaged(request(review)),
        prop::collection::vec(any::<u8>(), 0..3000).prop_map(|bytes| [PREFACE, &bytes].concat()),
        prop::collection::vec(any::<u8>(), 0..3000).prop_map(|bytes| [opening(), bytes].concat()),
        any_frames(review.to_vec()),
        any_headers(),
        large_headers(),
        wrong_length(review.to_vec()),
        many_streams(review.to_vec()),
    ]
    .boxed()
}

/// Frames of every kind in any order, among those of good requests; some are not as long as they say.
fn any_frames(review: Vec<u8>) -> BoxedStrategy<Vec<u8>> {
    let kind = prop_oneof![12 => 0..=10_u8, 1 => any::<u8>()];
    let flags = prop_oneof![
        prop::sample::select(vec![0, END_STREAM, END_HEADERS, END_STREAM | END_HEADERS]),
        any::<u8>()
    ];
    let stream = prop_oneof![4 => 0..6_u32, 1 => any::<u32>()];
    // PRIORITY, RST_STREAM, SETTINGS, PING and WINDOW_UPDATE are of these lengths.
    let fitting = prop::sample::select(vec![4_usize, 5, 6, 8, 12])
        .prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..64),
        4 => fitting,
        1 => (16_000..20_000_usize).prop_map(|length| vec![b'x'; length]),
    ];
    let lie = prop::option::weighted(0.1, 0..1_usize << 24);
    let other = (kind, flags, stream, payload, lie).prop_map(|(kind, flags, stream, payload, lie)| {
        frame_of(lie.unwrap_or(payload.len()), kind, flags, stream, &payload)
    });
    let length = review.len().to_string();
    let good = (0..4_u32, any::<bool>()).prop_map(move |(number, is_body)| {
        let [head, body] = frames(number * 2 + 1, &length, &review);
        if is_body { body } else { head }
    });
    prop::collection::vec(prop_oneof![3 => other, 2 => good], 1..20)
        .prop_map(|frames| [opening(), frames.concat()].concat())
        .boxed()
}

/// Headers that HPACK, or HTTP, does not know.
fn any_headers() -> BoxedStrategy<Vec<u8>> {
    let names = vec![":method", ":scheme", ":path", ":authority", ":status", "connection", "te", "Upper"];
    let one = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        ("[ -~]{0,30}", "[ -~]{0,60}").prop_map(|(name, value)| header(&name, &value)),
        prop::sample::select(names).prop_map(|name| header(name, "x")),
        Just(headers("5")),
        // Index 0, an index that is not there, a table of 4 GiB, a number without an end.
        prop::sample::select(vec![
            vec![0x80],
            vec![0xff, 0xff, 0x7f],
            vec![0x3f, 0xff, 0xff, 0xff, 0xff, 0x0f],
            vec![0xff; 30],
        ]),
    ];
    (prop::collection::vec(one, 0..12), any::<u8>())
        .prop_map(|(all, flags)| {
            let head = frame(HEADERS, flags | END_HEADERS, 1, &all.concat());
            [opening(), head, frame(DATA, END_STREAM, 1, b"hello")].concat()
        })
        .boxed()
}

/// Above the bound of a head, by one frame after the other, perhaps without an end; a MiB at most.
fn large_headers() -> BoxedStrategy<Vec<u8>> {
    (1..60_usize, 1..150_usize, any::<bool>())
        .prop_map(|(count, each, is_ended)| {
            let more = frame(CONTINUATION, 0, 1, &header("x-name", &"a".repeat(100)).repeat(each));
            let mut bytes = [opening(), frame(HEADERS, 0, 1, &headers("5")), more.repeat(count)].concat();
            if is_ended {
                bytes.extend(frame(CONTINUATION, END_HEADERS, 1, b""));
                bytes.extend(frame(DATA, END_STREAM, 1, b"hello"));
            }
            bytes
        })
        .boxed()
}

/// A content length that is not the body's, or is none.
fn wrong_length(review: Vec<u8>) -> BoxedStrategy<Vec<u8>> {
    let length = review.len();
    let said = prop_oneof![
        2 => any_length(length),
        1 => prop::sample::select(vec![u64::MAX.to_string(), (MAX_BODY_BYTES + 1).to_string()]),
        1 => "[ -~]{0,30}",
    ];
    (said, any::<bool>())
        .prop_map(move |(said, has_body)| {
            let [head, body] = frames(1, &said, &review);
            [opening(), head, if has_body { body } else { Vec::new() }].concat()
        })
        .boxed()
}

/// Many streams at once: good ones, ones that are never ended, and ones that are taken back at once.
fn many_streams(review: Vec<u8>) -> BoxedStrategy<Vec<u8>> {
    prop::collection::vec(0..4_u8, 1..400)
        .prop_map(move |kinds| {
            let mut bytes = opening();
            for (kind, stream) in kinds.into_iter().zip((1..).step_by(2)) {
                let [head, body] = frames(stream, &review.len().to_string(), &review);
                bytes.extend(head);
                match kind {
                    0 => bytes.extend(body),
                    1 => {}
                    _ => bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())),
                }
            }
            bytes
        })
        .boxed()
}
