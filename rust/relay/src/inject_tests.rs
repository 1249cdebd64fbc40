//! Messages that come in any pieces go out with the id in them, and nothing stays counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::config::Config;

const LONG_ID: &str = "a-model-whose-id-takes-more-bytes-than-one-byte-can-count:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef-0123456789";

fn plane(parked_bytes_max: usize, kept_body_bytes_max: usize) -> Plane {
    let config = Config {
        parked_bytes_max,
        kept_body_bytes_max,
        message_bytes_max: 100_000,
        ..Config::default()
    };
    Plane::new(config).expect("descriptors")
}

/// A field with this number and content, of up to 127 bytes or of thousands.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 127 {
        bytes.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(content);
    bytes
}

fn frame(message: &[u8]) -> Vec<u8> {
    [&prefix(message.len())[..], message].concat()
}

fn cut<'a>(bytes: &[u8], size: usize, plane: &'a Plane) -> Body<'a> {
    let chunks: VecDeque<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
    Body {
        chunks,
        held: bytes.len(),
        ..Body::message(Bytes::new(), plane)
    }
}

fn inject<'a>(
    body: &mut Body<'a>,
    path: &[u32],
    id: &str,
    gzip: bool,
    plane: &'a Plane,
) -> Result<(), Status> {
    let injection = Injection::new(path.into(), Arc::from(id), "/a.B/C", gzip, plane);
    let mut injecting = std::pin::pin!(body.inject(injection));
    match injecting.as_mut().poll(&mut cx()) {
        Poll::Ready(injected) => injected,
        Poll::Pending => panic!("all of it is here"),
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(std::task::Waker::noop())
}

fn sent(body: &mut Body<'_>) -> Result<Vec<u8>, Status> {
    let mut sent = Vec::new();
    loop {
        match body.poll_next(&mut cx()) {
            Poll::Ready(Some(piece)) => sent.extend(piece?),
            Poll::Ready(None) => return Ok(sent),
            Poll::Pending => panic!("all of it is here"),
        }
    }
}

fn counted(plane: &Plane) -> usize {
    plane.gauges.parked_bytes.load(Ordering::Relaxed)
}

#[test]
fn ids_are_put_into_messages_however_they_come() {
    let tensor = field(7, &[9; 70_000]);
    let asked = [
        field(1, &[field(1, b"alias"), field(3, b"sig")].concat()),
        tensor.clone(),
        field(1, &field(1, b"other")),
    ]
    .concat();
    let wanted = [
        field(
            1,
            &[field(1, LONG_ID.as_bytes()), field(3, b"sig")].concat(),
        ),
        tensor,
        field(1, &field(1, LONG_ID.as_bytes())),
    ]
    .concat();
    let small = frame(&field(1, &field(1, b"x")));
    let small_wanted = frame(&field(1, &field(1, LONG_ID.as_bytes())));
    // A stream of three messages; kept for a replay, or not.
    let bytes = [small.clone(), frame(&asked), small].concat();
    let all = [small_wanted.clone(), frame(&wanted), small_wanted].concat();
    for kept in [1 << 20, 0] {
        for size in [1, 4, 5, 6, 7, 1000, 16_384, bytes.len()] {
            let plane = plane(1 << 20, kept);
            let mut body = cut(&bytes, size, &plane);
            assert!(body.rewind());
            inject(&mut body, &[1, 1], LONG_ID, false, &plane).expect("fits");
            assert!(!body.is_sent() && counted(&plane) > bytes.len());
            assert_eq!(sent(&mut body).expect("fits"), all, "{size}");
            assert!(body.is_sent());
            assert_eq!(counted(&plane), 0, "{size}");
            assert_eq!(body.is_whole(), kept > 0);
            assert_eq!(body.held(), if kept > 0 { bytes.len() } else { 0 });
        }
    }
}

#[test]
fn another_attempt_starts_from_what_the_client_sent() {
    let plane = plane(1 << 20, 1 << 20);
    let bytes = frame(&field(1, b"alias"));
    let mut body = cut(&bytes, 3, &plane);
    assert!(body.rewind());
    inject(&mut body, &[1], "iris@1", false, &plane).expect("fits");
    assert_eq!(sent(&mut body).expect("fits"), frame(&field(1, b"iris@1")));
    body.rest();
    assert!(body.rewind());
    assert_eq!(sent(&mut body).expect("fits"), bytes);

    // Not kept, but nothing was sent yet either.
    let plane = self::plane(1 << 20, 0);
    let mut body = cut(&bytes, 3, &plane);
    assert!(body.rewind());
    inject(&mut body, &[1], "iris@1", false, &plane).expect("fits");
    body.rest();
    assert_eq!(counted(&plane), 0);
    assert!(body.rewind());
    inject(&mut body, &[2], "iris@2", false, &plane).expect("fits");
    let both = [field(1, b"alias"), field(2, b"iris@2")].concat();
    assert_eq!(sent(&mut body).expect("fits"), frame(&both));
}

fn gzipped(message: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(message).expect("memory");
    let mut framed = frame(&encoder.finish().expect("memory"));
    framed[0] = 1;
    framed
}

#[test]
fn compressed_messages_are_unpacked() {
    let plane = plane(1 << 20, 1 << 20);
    let message = [field(1, b"alias"), field(2, &[7; 5000])].concat();
    let mut body = cut(&gzipped(&message), 16, &plane);
    inject(&mut body, &[1], "iris@1", true, &plane).expect("fits");
    let wanted = [field(1, b"iris@1"), field(2, &[7; 5000])].concat();
    assert_eq!(sent(&mut body).expect("fits"), frame(&wanted));
    assert_eq!(counted(&plane), 0);

    let refused = |bytes: &[u8], gzip| {
        let mut body = cut(bytes, 16, &plane);
        let status = inject(&mut body, &[1], "iris@1", gzip, &plane).expect_err("refused");
        drop(body);
        assert_eq!(counted(&plane), 0);
        assert!(!status.message.is_empty());
        status.code
    };
    assert_eq!(refused(&gzipped(&message), false), Code::Unimplemented);
    let mut garbage = frame(b"no gzip at all");
    garbage[0] = 1;
    assert_eq!(refused(&garbage, true), Code::InvalidArgument);
    let bomb = gzipped(&field(2, &[0; 200_000]));
    assert_eq!(refused(&bomb, true), Code::ResourceExhausted);
}

#[test]
fn what_cannot_be_changed_or_held_is_refused() {
    let refused = |message: &[u8], path: &[u32], parked_bytes_max| {
        let plane = plane(parked_bytes_max, 0);
        let mut body = cut(&frame(message), 16, &plane);
        let status = inject(&mut body, path, "iris@1", false, &plane).expect_err("refused");
        drop(body);
        assert_eq!(counted(&plane), 0);
        assert!(status.message.contains("iris@1") && status.message.contains("a.B/C"));
        status
    };
    let cut_short = [field(1, b"alias"), vec![0x12, 200]].concat();
    assert_eq!(
        refused(&cut_short, &[1], 1 << 20).code,
        Code::InvalidArgument
    );
    assert_eq!(
        refused(&[0x08, 1], &[1], 1 << 20).code,
        Code::InvalidArgument
    );
    assert_eq!(
        refused(&field(1, b"a"), &[0], 1 << 20).code,
        Code::Internal,
        "the model server's fault"
    );
    let large = field(2, &[7; 5000]);
    for room in [100, 6000] {
        let status = refused(&large, &[1], room);
        assert_eq!(status.code, Code::ResourceExhausted);
        assert!(status.retry_after.is_some());
    }
}
