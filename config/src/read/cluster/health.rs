//! `[cluster.NAME.health]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use flowgate_core::config::Passive;
use regex::bytes::RegexBuilder;

use crate::error::{Fault, Printable};
use crate::nearest::nearest;
use crate::reader::{Field, Item, Table};
use crate::value::{boolean, choice, duration, integer, text};
use crate::{Expect, Payload, Probe, Probing, hex};

/// How often a probe may be sent, and how long it may take.
const PACE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);

const INTERVAL: Duration = Duration::from_secs(5);

/// How long an answer may take, unless the next probe comes sooner.
const TIMEOUT: Duration = Duration::from_secs(2);

const RISE: u32 = 2;
const FALL: u32 = 3;

/// The most bytes of a probe or its answer: those of a UDP datagram over IPv4.
const BYTES: RangeInclusive<usize> = 1..=65_507;

/// The most memory of a regular expression once it is ready to use.
const REGEX_SIZE: usize = 1 << 20;

/// When a cluster's backends are out of service.
pub(super) struct Health {
    pub(super) probing: Option<Probing>,
    pub(super) fail_open: bool,
    pub(super) passive: Option<Passive>,
}

#[derive(Clone, Copy)]
enum Kind {
    Off,
    Tcp,
    Udp,
}

const KINDS: &[(&str, Kind)] = &[("off", Kind::Off), ("tcp", Kind::Tcp), ("udp", Kind::Udp)];

/// Reads the table of a cluster, where datagrams tell of backends only if `has_flows`.
pub(super) fn health(table: &Table<'_>, has_flows: bool) -> Option<Health> {
    let kind = table.get("probe", choice(KINDS));
    let port = table.get("port", integer(1..=u16::MAX));
    let send = table.get("send", payload);
    let expect = table.get("expect", expect);
    let interval = table.get("interval", duration(PACE));
    let timeout = table.get("timeout", duration(PACE));
    let rise = table.get("rise", integer(1..=u32::MAX));
    let fall = table.get("fall", integer(1..=u32::MAX));
    let fail_open = table.get("fail_open", boolean).or(true);
    let is_passive = table
        .get("passive", boolean)
        .when(
            |passive| has_flows || !passive,
            "false, as nothing comes back that could tell of a backend",
        )
        .or(has_flows);

    if kind.is_refused() {
        // What the other keys may be is not known.
        return None;
    }
    let kind = kind.or(Kind::Off);
    if matches!(kind, Kind::Off) {
        let of_probes = [&port.item, &send.item, &expect.item, &timeout.item, &rise.item];
        warn_of_no_effect(&of_probes, "`probe` is \"off\"");
        if !is_passive {
            let shared = [&interval.item, &fall.item];
            warn_of_no_effect(&shared, "`probe` is \"off\" and `passive` is false");
        }
    }
    let (interval, rise, fall) = (interval.or(INTERVAL), rise.or(RISE), fall.or(FALL));
    let most = format!("at most the `interval`, {}", humantime::format_duration(interval));
    let timeout = timeout.when(|timeout| matches!(kind, Kind::Off) || *timeout <= interval, &most);
    let timeout = timeout.or(TIMEOUT.min(interval));
    let probe = match kind {
        Kind::Off => None,
        Kind::Tcp => Some(tcp(&send, &expect)),
        Kind::Udp => Some(udp(send, expect)?),
    };
    let probing = |kind| Probing { kind, port: port.value, interval, timeout, rise, fall };
    Some(Health {
        probing: probe.map(probing),
        fail_open,
        passive: is_passive.then_some(Passive { silent_flows: fall, back_off: interval }),
    })
}

fn warn_of_no_effect(items: &[&Item<'_>], because: &'static str) {
    for item in items.iter().filter(|item| item.value().is_some()) {
        item.warn(Fault::NoEffect { because });
    }
}

fn tcp(send: &Field<'_, Payload>, expect: &Field<'_, Expect>) -> Probe {
    warn_of_no_effect(&[&send.item, &expect.item], "only probe = \"udp\" sends and expects");
    Probe::Tcp
}

fn udp(send: Field<'_, Payload>, expect: Field<'_, Expect>) -> Option<Probe> {
    if send.item.value().is_none() {
        return send.item.refuse(format_args!("what probe = \"udp\" is to send: {PAYLOAD}"));
    }
    let send = send.value?;
    let is_preset = !matches!(send, Payload::Bytes(_));
    let expect = expect.when(
        |expect| !is_preset || *expect == Expect::Any,
        "\"any\", as the preset in `send` knows what an answer looks like",
    );
    Some(Probe::Udp { send, expect: expect.or(Expect::Any) })
}

const PAYLOAD: &str = "\"dns\", \"ntp\", \"sip\", \"quic\", \"hex:...\" or \"text:...\"";

fn payload(item: &Item<'_>) -> Option<Payload> {
    match text(item).unwrap_or_default() {
        "dns" => Some(Payload::Dns),
        "ntp" => Some(Payload::Ntp),
        "sip" => Some(Payload::Sip),
        "quic" => Some(Payload::Quic),
        written => {
            bytes(item, written, PAYLOAD, &["dns", "ntp", "sip", "quic"]).map(Payload::Bytes)
        }
    }
}

const EXPECT: &str = "\"any\", \"hex:...\", \"text:...\" or \"regex:...\"";

fn expect(item: &Item<'_>) -> Option<Expect> {
    let written = text(item).unwrap_or_default();
    match written.split_once(':') {
        None if written == "any" => Some(Expect::Any),
        Some(("regex", pattern)) if !pattern.is_empty() => regex(item, pattern),
        _ => bytes(item, written, EXPECT, &["any"]).map(Expect::Bytes),
    }
}

/// The bytes that `hex:` or `text:` stands before. Where neither does, one of the `words` or
/// whatever else is `allowed` may have been meant.
fn bytes(item: &Item<'_>, written: &str, allowed: &str, words: &[&str]) -> Option<Vec<u8>> {
    let bytes = match written.split_once(':') {
        Some(("hex", digits)) => match hex::decode(digits) {
            Some(bytes) => bytes,
            None => return item.refuse("after \"hex:\" two hexadecimal digits for each byte"),
        },
        Some(("text", text)) => text.as_bytes().to_vec(),
        _ => return item.refuse_typo(allowed, nearest(written, words.iter().copied())),
    };
    let (least, most) = (BYTES.start(), BYTES.end());
    let fits = BYTES.contains(&bytes.len());
    fits.then_some(bytes)
        .or_else(|| item.refuse(format_args!("{least} to {most} bytes after the colon")))
}

/// A pattern, if it is a regular expression.
fn regex(item: &Item<'_>, pattern: &str) -> Option<Expect> {
    let reason = match RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build() {
        Ok(_) => return Some(Expect::Regex(pattern.to_owned())),
        Err(regex::Error::CompiledTooBig(_)) => "this one takes too much memory".to_owned(),
        Err(error) => {
            // The lines above the last one draw where in the pattern it is.
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default();
            Printable(reason.strip_prefix("error: ").unwrap_or(reason)).to_string()
        }
    };
    item.refuse(format_args!("after \"regex:\" a regular expression ({reason})"))
}
