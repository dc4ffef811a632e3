//! `[cluster.NAME.health]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::reader::Table;
use crate::value::{boolean, duration, integer, payload, word};

/// How often a probe may be sent, and how long it may take.
const PACE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);

pub(super) fn health(table: &Table<'_>) -> Option<()> {
    table.get("probe", word(&["off", "tcp", "udp"])).only("off");
    table.get("port", integer(1..=u16::MAX)).not_yet();
    table.get("send", payload(&["dns", "ntp", "sip", "quic"], &["hex", "text"])).not_yet();
    table.get("expect", payload(&["any"], &["hex", "text", "regex"])).not_yet();
    table.get("interval", duration(PACE)).not_yet();
    table.get("timeout", duration(PACE)).not_yet();
    table.get("rise", integer(1..=u32::MAX)).not_yet();
    table.get("fall", integer(1..=u32::MAX)).not_yet();
    table.get("fail_open", boolean).only(true);
    table.get("passive", boolean).only(false);
    Some(())
}
