//! The keys of the configuration: each is named in one place, with how it is read and what stands in
//! for it.
//!
//! A function here first asks for all the keys of its table and only then builds what they make, so
//! that a key that is refused hides none of the others.

mod admin;
mod announce;
mod cluster;
mod listener;
mod log;

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::time::Duration;

use toml::de::DeValue;

use crate::error::Fault;
use crate::nearest::nearest;
use crate::reader::{Field, Item, Table};
use crate::schema::Shape;
use crate::value::{duration, text, whole};
use crate::{Config, Listener, Workers};
use announce::AnnouncedBy;
use cluster::Clusters;

/// The longest wait for flows to end at a graceful stop.
const MAX_DRAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// How long everything is still served at a stop where this instance is announced.
const USUAL_LAME_DUCK: Duration = Duration::from_secs(5);

/// The most threads: more than any machine has cores.
const MAX_WORKERS: i128 = 1024;

pub(crate) fn document(table: &Table<'_>) -> Option<Config> {
    let workers = table.get("workers", workers).or(Workers::Count(NonZeroU16::MIN));
    let drain_timeout = table
        .get("drain_timeout", duration(Duration::ZERO..=MAX_DRAIN))
        .or(Duration::from_secs(30));
    let mut announced_by = AnnouncedBy::new();
    let announce = announce::announce(table, &mut announced_by);
    let lame_duck = table.get("lame_duck", duration(Duration::ZERO..=MAX_DRAIN));
    let log = table.section("log", log::log);
    let admin = table.section("admin", admin::admin);
    let Field { item, value } = table.get("cluster", Clusters::read);
    let clusters = value.unwrap_or_default();
    let listeners = table
        .require("listener", |item| listener::listeners(item, &clusters, &mut announced_by))
        .value?;
    warn_of_unused(&item, &listeners);
    // Those who send traffic here are to hear that they had better not, if anybody tells them.
    let is_told = announce.item.value().is_some() || listeners.iter().any(|l| l.announce.is_some());
    let lame_duck = lame_duck.or(if is_told { USUAL_LAME_DUCK } else { Duration::ZERO });
    Some(Config {
        workers,
        drain_timeout,
        lame_duck,
        announce: announce.value,
        admin: admin?,
        log: log?,
        listeners,
        clusters: clusters.in_order()?,
        warnings: Vec::new(),
    })
}

fn workers(item: &Item<'_>) -> Option<Workers> {
    item.takes(|| Shape::Integer { least: "1".into(), most: MAX_WORKERS.to_string() });
    let number = match item.value() {
        Some(DeValue::Integer(number)) => whole(number),
        _ if text(item) == Some("auto") => return Some(Workers::Auto),
        _ => None,
    };
    let count = number.filter(|number| *number <= MAX_WORKERS);
    let count = count.and_then(|count| NonZeroU16::new(u16::try_from(count).ok()?));
    count.map(Workers::Count).or_else(|| {
        let meant = text(item).and_then(|written| nearest(written, ["auto"].into_iter()));
        item.refuse_typo(format_args!("\"auto\" or a whole number from 1 to {MAX_WORKERS}"), meant)
    })
}

fn warn_of_unused(clusters: &Item<'_>, listeners: &[Listener]) {
    let serving = listeners.iter().map(|listener| listener.cluster.name.as_str());
    let mirrors = listeners.iter().filter_map(|listener| listener.cluster.mirror.as_deref());
    let used: HashSet<&str> = serving.chain(mirrors).collect();
    clusters.entries(cluster::TABLES, |name, cluster| {
        if !used.contains(name) {
            cluster.warn(Fault::Unused);
        }
    });
}
