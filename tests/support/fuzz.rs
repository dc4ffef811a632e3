//! The bodies of the fuzz targets. `fuzz/` calls them with what libFuzzer finds, and
//! `tests/corpus.rs` with what it has found before.
//!
//! Each takes any bytes, and panics where the code that it is for does what it must not.

mod affinity;
mod proxy;
mod proxy_accept;
mod recording;
mod snapshot;
mod transactions;

use std::str;

use flowgate::admin::escape::escaped;
use flowgate::admin::request::Request;
use flowgate::control::probe::ProbePayload;
use flowgate::control::probe::preset::Preset;
use flowgate::sys::arena::RecvMeta;
use flowgate::sys::cmsg::{ControlBuffer, RECEIVE_BYTES, read};
use flowgate_core::Burst;

use crate::sim::run_bytes;
pub use affinity::affinity;
pub use proxy::proxy_header;
pub use proxy_accept::proxy_accept;
pub use recording::{capture, recording};
pub use snapshot::snapshot;
pub use transactions::transactions;

/// What a target does with its bytes.
pub type Body = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: [(&str, Body); 13] = [
    ("recording", recording),
    ("capture", capture),
    ("manager", manager),
    ("configuration", configuration),
    ("control_messages", control_messages),
    ("bursts", bursts),
    ("proxy_header", proxy_header),
    ("proxy_accept", proxy_accept),
    ("control_requests", control_requests),
    ("probe_answers", probe_answers),
    ("snapshot", snapshot),
    ("transactions", transactions),
    ("affinity", affinity),
];

/// A whole life of a balancer, judged by the model and the world.
pub fn manager(data: &[u8]) {
    run_bytes(data);
}

/// Text is a valid configuration, or gives reasons that can be shown on a terminal.
pub fn configuration(data: &[u8]) {
    const FILE: &str = "fuzz.toml";
    let Ok(text) = str::from_utf8(data) else { return };
    match flowgate_config::parse(text, FILE) {
        Ok(config) => {
            assert!(config.difference_to(&config).is_empty(), "it differs from itself");
            assert_eq!(flowgate_config::parse(text, FILE), Ok(config));
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some(), "refused without a reason");
            for line in errors.to_string().lines() {
                assert!(!line.contains(char::is_control), "{line:?} would reach the terminal");
            }
        }
    }
}

/// Control messages are read without a panic, and what they say can be written and read again.
pub fn control_messages(data: &[u8]) {
    let received = read(data);
    let RecvMeta { segment, tos, ttl, local, drops, .. } = received;
    let is_v6 = local.is_some_and(|local| local.ip.is_ipv6());
    let mut written = ControlBuffer::<RECEIVE_BYTES>::new();
    written.push_received_segment_size(segment);
    written.push_tos(tos, is_v6);
    written.push_ttl(ttl, is_v6);
    written.push_drops(drops);
    local.into_iter().for_each(|local| written.push_local(local, is_v6));
    assert_eq!(read(written.as_bytes()), received);
}

/// A burst, however it is split, holds the datagrams that its bytes are chunks of.
pub fn bursts(data: &[u8]) {
    let Some((&[a, b, c, d], bytes)) = data.split_first_chunk() else { return };
    let (stride, at) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let Some(burst) = Burst::segmented(bytes, stride) else {
        assert!(bytes.len() > flowgate_core::burst::MAX_BURST_BYTES);
        return;
    };
    let chunk = if stride == 0 { bytes.len() } else { usize::from(stride) };
    let mut datagrams: Vec<&[u8]> = bytes.chunks(chunk.max(1)).collect();
    if bytes.is_empty() {
        datagrams.push(bytes);
    }
    assert_eq!(burst.datagrams().collect::<Vec<_>>(), datagrams);
    assert_eq!(usize::from(burst.count()), datagrams.len());

    let (head, tail) = burst.split_at(at);
    let parts = [head, tail].into_iter().flatten();
    for part in parts.clone() {
        assert_eq!(Burst::segmented(part.bytes(), part.stride()), Some(part));
    }
    let rejoined: Vec<&[u8]> = parts.flat_map(|part| part.datagrams()).collect();
    assert_eq!(rejoined, datagrams);
    assert_eq!(head.map_or(0, |head| head.count()), at.min(burst.count()));
}

/// A line is a request that can be written and read again, or there is a reason why not.
pub fn control_requests(data: &[u8]) {
    for command in ["reload", "drain", "undrain", "upgrade", "stop"] {
        match Request::from_parts(command, data) {
            Ok(request) => {
                let (named, details) = request.to_parts().expect("it came from JSON");
                let details = serde_json::to_vec(&details).expect("an object is JSON");
                assert_eq!(Request::from_parts(&named, &details), Ok(request));
            }
            Err(reason) => assert!(escaped(&reason).chars().all(|c| !c.is_control())),
        }
    }
}

/// Whatever answers a probe is judged without a panic, and never a probe's own question.
pub fn probe_answers(data: &[u8]) {
    let (local, peer) = (([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
    for preset in [Preset::Dns, Preset::Ntp, Preset::Sip, Preset::Quic] {
        // The ids of one probe are the fuzzer's to guess.
        let question = ProbePayload::Preset(preset).question(7, local, peer);
        question.accepts(data);
        assert!(!question.accepts(question.bytes()), "{preset:?} takes its question for an answer");
    }
}
