//! What payload processors are offered: requests and responses, taken by reference as they pass, and kept until somebody
//! fetches them. Nothing waits for it: what does not fit is dropped and counted. Nothing is kept of calls that no filter wants.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use inference::grpc::unbase64;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::frames::{PREFIX_BYTES, gunzip, parse_prefix};
use crate::headers::gzip;
use crate::metrics::Counters;
use crate::status::Code;

/// Which calls are wanted. `None`: any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A concrete model, or the vmodel it was asked for by.
    pub model: Option<Box<str>>,
    /// A path as on the wire, with the leading slash.
    pub method: Option<Box<str>>,
}

impl Filter {
    fn wants_method(&self, path: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == path)
    }

    fn wants(&self, path: &str, model: &str, vmodel: &str) -> bool {
        let by_model = |wanted: &str| wanted == model || wanted == vmodel;
        self.wants_method(path) && self.model.as_deref().is_none_or(by_model)
    }
}

/// See the module.
#[derive(Default)]
pub struct Tee {
    on: AtomicBool,
    filters: RwLock<Arc<[Filter]>>,
    queue: Mutex<VecDeque<Payload>>,
    came: Condvar,
    payloads_max: AtomicUsize,
    bytes_max: AtomicUsize,
    bytes: Arc<AtomicUsize>,
    calls: AtomicU64,
}

impl Tee {
    /// Offers what these filters want from now on; none: nothing. At most so many payloads wait, and so many bytes are held.
    pub fn set(&self, filters: Vec<Filter>, payloads_max: usize, bytes_max: usize) {
        self.payloads_max.store(payloads_max, Ordering::Relaxed);
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
        let on = !filters.is_empty();
        *self.filters.write() = filters.into();
        self.on.store(on, Ordering::Release);
    }

    /// What listens to a call of this method; `None`: nobody wants it.
    pub fn tap(&self, path: &str, request_headers: &HeaderMap) -> Option<Tap> {
        if !self.on.load(Ordering::Acquire) {
            return None;
        }
        let filters = self.filters.read().clone();
        filters
            .iter()
            .any(|filter| filter.wants_method(path))
            .then(|| Tap {
                call: self.calls.fetch_add(1, Ordering::Relaxed) + 1,
                filters,
                request: self.capture(),
                request_headers: request_headers.clone(),
                response: self.capture(),
                response_headers: HeaderMap::new(),
            })
    }

    /// Something to capture a body in.
    pub fn capture(&self) -> Captured {
        Captured {
            chunks: Vec::new(),
            bytes: 0,
            lost: false,
            all: self.bytes.clone(),
            bytes_max: self.bytes_max.load(Ordering::Relaxed),
        }
    }

    /// A call has ended: its request and response are offered, if they are wanted and there is room.
    pub fn offer(&self, tap: Tap, about: &About<'_>, counters: &Counters) {
        let About {
            path,
            model,
            vmodel,
            code,
        } = *about;
        if !tap
            .filters
            .iter()
            .any(|filter| filter.wants(path, model, vmodel))
        {
            return;
        }
        let payload = |code, headers, body| Payload {
            call: tap.call,
            model: model.into(),
            vmodel: vmodel.into(),
            path: path.into(),
            code,
            headers,
            body,
        };
        let failed = code != Code::Ok;
        let (response_headers, response) = if failed {
            (HeaderMap::new(), self.capture())
        } else {
            (tap.response_headers, tap.response)
        };
        self.push(payload(None, tap.request_headers, tap.request), counters);
        self.push(payload(Some(code), response_headers, response), counters);
    }

    fn push(&self, payload: Payload, counters: &Counters) {
        let mut queue = self.queue.lock();
        if payload.body.lost || queue.len() >= self.payloads_max.load(Ordering::Relaxed) {
            counters.payloads_dropped.add(1);
            return;
        }
        queue.push_back(payload);
        drop(queue);
        counters.payloads_offered.add(1);
        self.came.notify_one();
    }

    /// The oldest payload, waiting for one; `None` when none came in time. For threads that may wait.
    pub fn take(&self, timeout: Duration) -> Option<Payload> {
        let until = Instant::now() + timeout;
        let mut queue = self.queue.lock();
        loop {
            if let Some(payload) = queue.pop_front() {
                return Some(payload);
            }
            if self.came.wait_until(&mut queue, until).timed_out() {
                return queue.pop_front();
            }
        }
    }
}

/// A call that has ended.
pub struct About<'a> {
    /// As on the wire.
    pub path: &'a str,
    /// The concrete model.
    pub model: &'a str,
    /// What it was asked for by; empty: by itself.
    pub vmodel: &'a str,
    /// How it ended.
    pub code: Code,
}

/// What is heard of one call.
pub struct Tap {
    call: u64,
    filters: Arc<[Filter]>,
    /// The body of the request.
    pub request: Captured,
    request_headers: HeaderMap,
    /// The body of the response.
    pub response: Captured,
    /// The headers of the response.
    pub response_headers: HeaderMap,
}

/// Pieces of a body, by reference, counted among all that are held.
pub struct Captured {
    chunks: Vec<Bytes>,
    bytes: usize,
    lost: bool,
    all: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Captured {
    /// The next piece. When there is no room for it, none of them is kept.
    pub fn push(&mut self, chunk: &Bytes) {
        if self.lost {
            return;
        }
        let more = chunk.len();
        if self.all.fetch_add(more, Ordering::Relaxed) + more > self.bytes_max {
            self.all.fetch_sub(more, Ordering::Relaxed);
            self.lost = true;
            self.let_go();
            return;
        }
        self.bytes += more;
        self.chunks.push(chunk.clone());
    }

    fn let_go(&mut self) {
        self.chunks = Vec::new();
        self.all
            .fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// A request or a response.
pub struct Payload {
    /// The same for the request and the response of one call.
    pub call: u64,
    /// The concrete model.
    pub model: Box<str>,
    /// What it was asked for by; empty: by itself.
    pub vmodel: Box<str>,
    /// As on the wire.
    pub path: Box<str>,
    /// How the call ended; `None`: it is a request.
    pub code: Option<Code>,
    headers: HeaderMap,
    body: Captured,
}

impl Payload {
    /// The message without its frame, decompressed where that can be done within `bytes_max`.
    pub fn message(&self, bytes_max: usize) -> Vec<u8> {
        let framed = self.body.chunks.concat();
        let gzip = gzip(&self.headers);
        let mut rest = &framed[..];
        let mut message = Vec::new();
        while let Some((compressed, length)) = parse_prefix(rest) {
            let Some(part) = rest.get(PREFIX_BYTES..PREFIX_BYTES + length) else {
                break;
            };
            match (compressed && gzip).then(|| gunzip(part, bytes_max)) {
                Some(Ok((plain, true))) => message.extend(plain),
                _ => message.extend_from_slice(part),
            }
            rest = &rest[PREFIX_BYTES + length..];
        }
        message
    }

    /// Its headers, the last value of each, without credentials; those of names ending with -bin in padded base64.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let passed = self.headers.keys().filter(|name| !is_secret(name.as_str()));
        passed
            .filter_map(|name| {
                let value = self.headers.get_all(name).iter().next_back()?.as_bytes();
                let text = if name.as_str().ends_with("-bin") {
                    unbase64(value).map(|bytes| STANDARD.encode(bytes))?
                } else {
                    String::from_utf8_lossy(value).into_owned()
                };
                Some((name.to_string(), text))
            })
            .collect()
    }
}

/// Whether a header is likely to prove who somebody is.
fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 8] = [
        "authorization",
        "cookie",
        "token",
        "secret",
        "password",
        "api-key",
        "apikey",
        "credential",
    ];
    PARTS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const NO_WAIT: Duration = Duration::ZERO;

    fn filter(model: Option<&str>, method: Option<&str>) -> Filter {
        Filter {
            model: model.map(Into::into),
            method: method.map(Into::into),
        }
    }

    fn call(tee: &Tee, model: &str, vmodel: &str, code: Code, counters: &Counters) {
        let Some(mut tap) = tee.tap("/a/B", &HeaderMap::new()) else {
            return;
        };
        for body in [&mut tap.request, &mut tap.response] {
            body.push(&Bytes::from_static(b"\0\0\0"));
            body.push(&Bytes::from_static(b"\0\x02hi"));
        }
        let about = About {
            path: "/a/B",
            model,
            vmodel,
            code,
        };
        tee.offer(tap, &about, counters);
    }

    #[test]
    fn what_a_filter_wants_is_offered_in_pairs() {
        let (tee, counters) = (Tee::default(), Counters::default());
        call(&tee, "m", "", Code::Ok, &counters);
        assert!(tee.take(NO_WAIT).is_none(), "off");
        for (filters, offered) in [
            (vec![filter(None, None)], true),
            (vec![filter(Some("v"), Some("/a/B"))], true),
            (vec![filter(Some("x"), None), filter(Some("m"), None)], true),
            (vec![filter(Some("x"), None)], false),
            (vec![filter(Some("m"), Some("/a/C"))], false),
        ] {
            tee.set(filters, 9, 999);
            call(&tee, "m", "v", Code::Ok, &counters);
            let payloads = [tee.take(NO_WAIT), tee.take(NO_WAIT)];
            for (payload, code) in payloads.iter().flatten().zip([None, Some(Code::Ok)]) {
                assert_eq!((&*payload.model, &*payload.vmodel), ("m", "v"));
                assert_eq!((payload.code, payload.message(99)), (code, b"hi".to_vec()));
            }
            assert_eq!(
                payloads.iter().flatten().count(),
                if offered { 2 } else { 0 }
            );
            drop(payloads);
            assert_eq!(tee.bytes.load(Ordering::Relaxed), 0);
        }
        assert_eq!(counters.payloads_dropped.get(), 0);
    }

    #[test]
    fn the_response_of_a_failed_call_has_its_code_alone() {
        let (tee, counters) = (Tee::default(), Counters::default());
        tee.set(vec![filter(None, None)], 9, 999);
        call(&tee, "m", "", Code::NotFound, &counters);
        assert_eq!(tee.take(NO_WAIT).expect("the request").message(9), b"hi");
        let response = tee.take(NO_WAIT).expect("the response");
        assert_eq!(response.code, Some(Code::NotFound));
        assert!(response.message(9).is_empty() && response.metadata().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (tee, counters) = (Tee::default(), Counters::default());
        tee.set(vec![filter(None, None)], 3, 999);
        call(&tee, "m", "", Code::Ok, &counters);
        call(&tee, "m", "", Code::Ok, &counters);
        assert_eq!(
            (
                counters.payloads_offered.get(),
                counters.payloads_dropped.get()
            ),
            (3, 1)
        );
        while tee.take(NO_WAIT).is_some() {}
        tee.set(vec![filter(None, None)], 99, 10);
        call(&tee, "m", "", Code::Ok, &counters);
        assert_eq!(
            counters.payloads_dropped.get(),
            2,
            "the response is over the bound on bytes"
        );
        drop(tee.take(NO_WAIT));
        assert_eq!(tee.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn credentials_are_withheld_and_the_last_value_counts() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("cookie", "x"),
            ("x-auth-token", "x"),
            ("x-tag", "1"),
            ("x-tag", "2"),
            ("x-trace-bin", "w7w"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let (tee, counters) = (Tee::default(), Counters::default());
        tee.set(vec![filter(None, None)], 9, 999);
        let about = About {
            path: "/a/B",
            model: "m",
            vmodel: "",
            code: Code::Ok,
        };
        tee.offer(
            tee.tap("/a/B", &headers).expect("wanted"),
            &about,
            &counters,
        );
        let mut metadata = tee.take(NO_WAIT).expect("the request").metadata();
        metadata.sort();
        let expected = [("x-tag", "2"), ("x-trace-bin", "w7w=")];
        assert_eq!(
            metadata,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
