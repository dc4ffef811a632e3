//! The metrics, all from one status document.
//!
//! In each scrape `flowgate_datagrams_received_total` is the sum of `flowgate_datagrams_total`,
//! which counts what the kernel has taken, `flowgate_datagrams_dropped_total` and
//! `flowgate_datagrams_queued`.

use std::collections::BTreeMap;
use std::fmt::Display;

use flowgate_core::backend::EjectionCause;
use flowgate_core::{CloseReason, Direction, DropReason};

use super::exposition::{Exposition, Format, Kind};
use crate::admin::status::{
    BackendState, BackendStatus, LedgerDoc, ListenerStatus, StatusDocument, TrafficDoc,
};

/// A document's figures as text.
pub(super) fn render(document: &StatusDocument, format: Format) -> String {
    let mut text = Exposition::new(format);
    process(&mut text, document);
    traffic(&mut text, document);
    mirrors(&mut text, document);
    flows(&mut text, document);
    fast_path(&mut text, document);
    backends(&mut text, document);
    states(&mut text, document);
    first_answers(&mut text, document);
    dropped_for_backends(&mut text, document);
    usage(&mut text, document);
    text.finish()
}

fn process(text: &mut Exposition, document: &StatusDocument) {
    text.family("flowgate_build_info", Kind::Info, "The version that is running.")
        .sample(&[("version", &document.version)], 1);
    text.family("flowgate_uptime_seconds", Kind::Gauge, "How long the process has been running.")
        .sample(&[], document.uptime_seconds);
    text.family(
        "flowgate_reloads_total",
        Kind::Counter,
        "Reloads of the configuration: ok, or failed, after which the old one went on.",
    )
    .sample(&[("result", &"ok")], document.counters.reloads_ok)
    .sample(&[("result", &"failed")], document.counters.reloads_failed);
    let last = document.process.last_reload.as_ref();
    let last = last.filter(|reload| reload.at > 0.0);
    if let Some(reload) = last {
        text.family(
            "flowgate_last_reload_timestamp_seconds",
            Kind::Gauge,
            "When the configuration was last reloaded or that was refused, in Unix time.",
        )
        .sample(&[], reload.at);
        text.family(
            "flowgate_last_reload_success",
            Kind::Gauge,
            "1 if the last reload is in force, 0 if it was refused.",
        )
        .sample(&[], u8::from(reload.ok));
    }
    let help = "1 while this instance, or a listener that is announced by itself, is announced, 0 while it is withdrawn or neither yet.";
    let mut family = text.family("flowgate_announced", Kind::Gauge, help);
    if let Some(announce) = &document.announce {
        family.sample(&[], u8::from(announce.announced == Some(true)));
    }
    for listener in &document.listeners {
        if let Some(announce) = &listener.announce {
            let is_announced = u8::from(announce.announced == Some(true));
            family.sample(&[("listener", &listener.name)], is_announced);
        }
    }
    let help = "A number that instances share which place clients alike.";
    let mut family = text.family("flowgate_cluster_fingerprint", Kind::Gauge, help);
    for cluster in &document.clusters {
        let number = cluster.fingerprint.as_deref().map(|digits| u64::from_str_radix(digits, 16));
        if let Some(Ok(number)) = number {
            family.sample(&[("cluster", &cluster.name)], number);
        }
    }
    let help = "1 while a backend's host name resolves, 0 while lookups fail.";
    let mut family = text.family("flowgate_name_resolves", Kind::Gauge, help);
    for name in &document.names {
        family.sample(&[("name", &name.name)], u8::from(name.resolves));
    }
}

/// What every process can say of itself, by the names that Prometheus' client libraries give it.
fn usage(text: &mut Exposition, document: &StatusDocument) {
    let usage = &document.process.usage;
    text.family("process_cpu_seconds_total", Kind::Counter, "Time on processors, in seconds.")
        .sample(&[], usage.cpu_seconds);
    let help = "Start of the process, in Unix time.";
    text.family("process_start_time_seconds", Kind::Gauge, help)
        .sample(&[], document.process.started);
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Memory that is there, in bytes.", usage.resident_bytes),
        ("process_virtual_memory_bytes", "Addresses that are taken.", usage.virtual_bytes),
        ("process_threads", "Threads.", usage.threads),
        ("process_open_fds", "Open files, sockets among them.", usage.open_files),
        ("process_max_fds", "How many files may be open.", usage.open_files_max),
    ] {
        text.family(name, Kind::Gauge, help).sample(&[], value);
    }
}

fn traffic(text: &mut Exposition, document: &StatusDocument) {
    let forwarded: fn(&LedgerDoc) -> TrafficDoc = |ledger| ledger.forwarded;
    let received: fn(&LedgerDoc) -> TrafficDoc = |ledger| ledger.received;
    let datagrams: fn(TrafficDoc) -> u64 = |traffic| traffic.datagrams;
    let bytes: fn(TrafficDoc) -> u64 = |traffic| traffic.bytes;
    for (name, help, part, unit) in [
        (
            "flowgate_datagrams_received_total",
            "Datagrams that arrived: flowgate_datagrams_total + flowgate_datagrams_dropped_total + flowgate_datagrams_queued.",
            received,
            datagrams,
        ),
        ("flowgate_datagrams_total", "Datagrams that were sent on.", forwarded, datagrams),
        ("flowgate_bytes_total", "Payload bytes that were sent on.", forwarded, bytes),
    ] {
        let mut family = text.family(name, Kind::Counter, help);
        for (listener, direction, ledger) in ledgers(document) {
            let labels: [(&str, &dyn Display); 2] =
                [("listener", &listener.name), ("direction", &direction.as_str())];
            family.sample(&labels, unit(part(ledger)));
        }
    }
    let help = "Datagrams that wait for room in a send buffer.";
    let mut family = text.family("flowgate_datagrams_queued", Kind::Gauge, help);
    for (listener, direction, ledger) in ledgers(document) {
        let labels: [(&str, &dyn Display); 2] =
            [("listener", &listener.name), ("direction", &direction.as_str())];
        family.sample(&labels, ledger.queued.datagrams);
    }
    let mut family = text.family(
        "flowgate_datagrams_dropped_total",
        Kind::Counter,
        "Datagrams that arrived and were not sent on, by reason.",
    );
    for (listener, direction, ledger) in ledgers(document) {
        let reasons = DropReason::ALL.iter().map(|reason| reason.as_str());
        for (reason, dropped) in all_of(reasons, &ledger.dropped) {
            let labels: [(&str, &dyn Display); 3] = [
                ("listener", &listener.name),
                ("direction", &direction.as_str()),
                ("reason", &reason),
            ];
            family.sample(&labels, dropped.datagrams);
        }
    }
    let mut family = text.family(
        "flowgate_socket_drops_total",
        Kind::Counter,
        "Datagrams that the kernel dropped before Flowgate received them, since a receive buffer was \
         full or a checksum wrong (SO_RXQ_OVFL).",
    );
    for listener in &document.listeners {
        let both = [
            (Direction::ToBackend, listener.socket_drops),
            (Direction::ToClient, listener.upstream_socket_drops),
        ];
        for (direction, drops) in both {
            let labels: [(&str, &dyn Display); 2] =
                [("listener", &listener.name), ("direction", &direction.as_str())];
            family.sample(&labels, drops);
        }
    }
    let help = "Open sockets to backends: of one flow each, or shared (upstream).";
    let mut family = text.family("flowgate_upstreams", Kind::Gauge, help);
    for listener in &document.listeners {
        let kinds =
            [("per_flow", listener.upstreams_per_flow), ("shared", listener.upstreams_shared)];
        for (kind, upstreams) in kinds {
            let labels: [(&str, &dyn Display); 2] = [("listener", &listener.name), ("kind", &kind)];
            family.sample(&labels, upstreams);
        }
    }
    let help = "Clients that have sockets of their own (accept).";
    let mut family = text.family("flowgate_client_sockets", Kind::Gauge, help);
    for listener in &document.listeners {
        family.sample(&[("listener", &listener.name)], listener.client_sockets);
    }
    let help = "Sockets for clients that could not be opened; the listener serves those clients.";
    let mut family = text.family("flowgate_client_sockets_failed_total", Kind::Counter, help);
    for listener in &document.listeners {
        family.sample(&[("listener", &listener.name)], listener.client_sockets_failed);
    }
}

fn mirrors(text: &mut Exposition, document: &StatusDocument) {
    let mirrors = || {
        let all = document.listeners.iter();
        all.filter_map(|listener| Some((&listener.name, listener.mirror.as_ref()?)))
    };
    let help = "Datagrams of which a copy was sent to the mirror.";
    let mut family = text.family("flowgate_mirror_datagrams_total", Kind::Counter, help);
    for (listener, mirror) in mirrors() {
        let labels: [(&str, &dyn Display); 2] =
            [("listener", listener), ("cluster", &mirror.cluster)];
        family.sample(&labels, mirror.to_backend.forwarded.datagrams);
    }
    let mut family = text.family(
        "flowgate_mirror_datagrams_dropped_total",
        Kind::Counter,
        "Copies for the mirror that were not sent on, by reason.",
    );
    for (listener, mirror) in mirrors() {
        for (reason, dropped) in &mirror.to_backend.dropped {
            let labels: [(&str, &dyn Display); 3] =
                [("listener", listener), ("cluster", &mirror.cluster), ("reason", reason)];
            family.sample(&labels, dropped.datagrams);
        }
    }
}

fn flows(text: &mut Exposition, document: &StatusDocument) {
    let active: fn(&ListenerStatus) -> u64 = |listener| listener.flows_active;
    for (name, kind, help, value) in [
        ("flowgate_flows_active", Kind::Gauge, "Active flows.", active),
        ("flowgate_flows_max", Kind::Gauge, "The limit of active flows.", |l| l.flows_max),
        ("flowgate_flows_opened_total", Kind::Counter, "Flows opened.", |l| l.flows_opened),
        (
            "flowgate_retries_total",
            Kind::Counter,
            "Datagrams that went to another backend, since one refused them or was silent.",
            |l| l.retries,
        ),
    ] {
        let mut family = text.family(name, kind, help);
        for listener in &document.listeners {
            family.sample(&[("listener", &listener.name)], value(listener));
        }
    }
    let help = "Flows closed, by reason.";
    let mut family = text.family("flowgate_flows_closed_total", Kind::Counter, help);
    for listener in &document.listeners {
        let reasons = CloseReason::ALL.iter().map(|reason| reason.as_str());
        for (reason, flows) in all_of(reasons, &listener.flows_closed) {
            family.sample(&[("listener", &listener.name), ("reason", &reason)], flows);
        }
    }
}

/// What the kernel forwards by itself: nothing where it is not to.
fn fast_path(text: &mut Exposition, document: &StatusDocument) {
    let of = |listener: &ListenerStatus| listener.fast_path.clone().unwrap_or_default();
    let paths: Vec<_> = document.listeners.iter().map(|l| (&l.name, of(l))).collect();
    let help = "Flows that the kernel forwards past the sockets.";
    let mut family = text.family("flowgate_fast_path_flows", Kind::Gauge, help);
    for (listener, path) in &paths {
        family.sample(&[("listener", listener)], path.flows);
    }
    let help = "Datagrams that the kernel forwarded past the sockets; flowgate_datagrams_total has \
                them too.";
    let mut family = text.family("flowgate_fast_path_datagrams_total", Kind::Counter, help);
    for (listener, path) in &paths {
        for direction in Direction::ALL {
            let labels: [(&str, &dyn Display); 2] =
                [("listener", listener), ("direction", &direction.as_str())];
            let datagrams = match direction {
                Direction::ToBackend => path.datagrams.to_backend,
                Direction::ToClient => path.datagrams.to_client,
            };
            family.sample(&labels, datagrams);
        }
    }
    let help = "Flows that the kernel began to forward before they had paused, so that one datagram \
                may have overtaken another.";
    let mut family = text.family("flowgate_fast_path_overtaken_total", Kind::Counter, help);
    for (listener, path) in &paths {
        family.sample(&[("listener", listener)], path.overtaken);
    }
}

fn backends(text: &mut Exposition, document: &StatusDocument) {
    let up: fn(&BackendStatus) -> u64 = |backend| (!backend.state.is_trouble()).into();
    for (name, help, value) in [
        ("flowgate_backend_up", "0 while the backend is down or ejected, else 1.", up),
        (
            "flowgate_backend_draining",
            "1 while the backend is drained and takes no new flows, else 0.",
            |backend| (backend.state == BackendState::Draining).into(),
        ),
        ("flowgate_backend_flows_active", "Active flows on the backend.", |b| b.flows_active),
    ] {
        of_backends(text, document, (name, Kind::Gauge, help), |backend| Some(value(backend)));
    }
    let help = "Datagrams that went to the backend, and that came from it.";
    let family = ("flowgate_backend_datagrams_total", Kind::Counter, help);
    of_backends_by(text, document, family, "direction", |backend| {
        both_ways(backend.datagrams_to, backend.datagrams_from)
    });
}

/// In what state backends are, why, and how often traffic has put them out of service.
fn states(text: &mut Exposition, document: &StatusDocument) {
    let help = "1, with the backend's state as a label: up, down, draining, ejected or unchecked.";
    let family = ("flowgate_backend_state", Kind::Gauge, help);
    of_backends_by(text, document, family, "state", |backend| [(backend.state.as_str(), 1)]);
    let help = "How long the backend has been in its state.";
    let family = ("flowgate_backend_state_seconds", Kind::Gauge, help);
    of_backends(text, document, family, |backend| backend.since_seconds);
    let help = "How often traffic has put the backend out of service for a while, by cause.";
    let family = ("flowgate_backend_ejections_total", Kind::Counter, help);
    of_backends_by(text, document, family, "cause", |backend| {
        all_of(EjectionCause::ALL.iter().map(|cause| cause.as_str()), &backend.ejections)
    });
    let help = "Payload bytes that went to the backend, and that came from it.";
    let family = ("flowgate_backend_bytes_total", Kind::Counter, help);
    of_backends_by(text, document, family, "direction", |backend| {
        both_ways(backend.bytes_to, backend.bytes_from)
    });
}

fn first_answers(text: &mut Exposition, document: &StatusDocument) {
    let help =
        "How long the first answers of the backend took, from the first datagram of a flow on.";
    let mut family = text.family("flowgate_first_answer_seconds", Kind::Histogram, help);
    for (cluster, backend) in all_backends(document) {
        let Some(times) = &backend.first_answers else { continue };
        let labels: [(&str, &dyn Display); 2] =
            [("cluster", &cluster), ("backend", &backend.address)];
        let mut bucket = |bound: &dyn Display, count: u64| {
            family.sample_of("_bucket", &[labels[0], labels[1], ("le", bound)], count);
        };
        // What is 1 is written as 1.0, as OpenMetrics has it.
        times.buckets.iter().for_each(|(bound, count)| bucket(&format!("{bound:?}"), *count));
        bucket(&"+Inf", times.count);
        family.sample_of("_sum", &labels, times.sum_seconds);
        family.sample_of("_count", &labels, times.count);
    }
}

fn dropped_for_backends(text: &mut Exposition, document: &StatusDocument) {
    let help = "Datagrams that were to be sent to the backend and could not be.";
    let family = ("flowgate_backend_datagrams_dropped_total", Kind::Counter, help);
    of_backends(text, document, family, |backend| Some(backend.datagrams_dropped));
}

const fn both_ways(to_backend: u64, to_client: u64) -> [(&'static str, u64); 2] {
    [(Direction::ToBackend.as_str(), to_backend), (Direction::ToClient.as_str(), to_client)]
}

/// A metric with a sample for each backend that has a value.
fn of_backends<V: Display>(
    text: &mut Exposition,
    document: &StatusDocument,
    (name, kind, help): (&'static str, Kind, &str),
    value: impl Fn(&BackendStatus) -> Option<V>,
) {
    let mut family = text.family(name, kind, help);
    for (cluster, backend) in all_backends(document) {
        if let Some(value) = value(backend) {
            family.sample(&[("cluster", &cluster), ("backend", &backend.address)], value);
        }
    }
}

/// A metric with several samples for each backend, told apart by a label.
fn of_backends_by<'d, V: Display, S: IntoIterator<Item = (&'d str, V)>>(
    text: &mut Exposition,
    document: &'d StatusDocument,
    (name, kind, help): (&'static str, Kind, &str),
    label: &str,
    samples: impl Fn(&'d BackendStatus) -> S,
) {
    let mut family = text.family(name, kind, help);
    for (cluster, backend) in all_backends(document) {
        for (which, value) in samples(backend) {
            let labels: [(&str, &dyn Display); 3] =
                [("cluster", &cluster), ("backend", &backend.address), (label, &which)];
            family.sample(&labels, value);
        }
    }
}

fn all_backends(document: &StatusDocument) -> impl Iterator<Item = (&str, &BackendStatus)> {
    let clusters = document.clusters.iter();
    clusters.flat_map(|c| c.backends.iter().map(move |backend| (c.name.as_str(), backend)))
}

fn ledgers(
    document: &StatusDocument,
) -> impl Iterator<Item = (&ListenerStatus, Direction, &LedgerDoc)> {
    document.listeners.iter().flat_map(|listener| {
        Direction::ALL.map(|direction| match direction {
            Direction::ToBackend => (listener, direction, &listener.to_backend),
            Direction::ToClient => (listener, direction, &listener.to_client),
        })
    })
}

/// A figure for each reason that there is, so that a series is there before it first grows, and for
/// those of the document that are not known here.
fn all_of<'d, T: Copy + Default>(
    reasons: impl Iterator<Item = &'d str>,
    figures: &'d BTreeMap<String, T>,
) -> BTreeMap<&'d str, T> {
    let mut all: BTreeMap<_, _> = reasons.map(|reason| (reason, T::default())).collect();
    all.extend(figures.iter().map(|(reason, figure)| (reason.as_str(), *figure)));
    all
}
