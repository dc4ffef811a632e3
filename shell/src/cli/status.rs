//! `flowgate status`: how things stand, in tables or as JSON.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::Args;

use super::Failure;
use super::ask::ClientOptions;
use super::columns::{Align, Table};
use super::human;
use crate::admin::escape::{escaped, escaped_path};
use crate::admin::request::{Request, Response};
use crate::admin::status::{
    AnnounceStatus, BackendState, BackendStatus, ClusterStatus, LedgerDoc, ListenerStatus,
    NameStatus, StatusDocument,
};

/// The arguments of `flowgate status`.
#[derive(Args, Debug)]
pub(super) struct StatusArguments {
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn run(arguments: &StatusArguments) -> Result<(), Failure> {
    arguments.options.print(
        &Request::Status,
        |answer| match answer {
            Response::Status(status) => Some(status),
            _ => None,
        },
        |status| text(status, human::wants_colours()),
    )
}

/// The document as people read it.
fn text(status: &StatusDocument, colours: bool) -> String {
    let counters = &status.counters;
    let (mut backends, mut trouble) = (backends(&status.clusters), trouble(&status.clusters));
    if colours {
        backends.paint(2, state_style);
        trouble.paint(1, state_style);
    }
    format!(
        "Flowgate {}, up {}; reloads: {}, refused: {}\n{}\n{}\n{}\n{backends}\n{}{}{}{}",
        escaped(&status.version),
        uptime(status),
        human::count(counters.reloads_ok),
        human::count(counters.reloads_failed),
        origin(status),
        listeners(&status.listeners),
        datagrams(&status.listeners),
        unless_empty(&trouble),
        unless_empty(&names(&status.names)),
        unless_empty(&fast_paths(&status.listeners)),
        drops(&status.listeners),
    )
}

/// Where it runs, and by what.
fn origin(status: &StatusDocument) -> String {
    let process = &status.process;
    let mut text = String::new();
    if status.stopping && !status.draining {
        text += "stopping: everything is served for a while yet\n";
    }
    text += &status.announce.as_ref().map(announced).unwrap_or_default();
    for listener in &status.listeners {
        if let Some(announce) = &listener.announce {
            text += &format!("listener {}: {}", escaped(&listener.name), announced(announce));
        }
    }
    if process.io == "portable" {
        text += "FLOWGATE_IO=portable: the calls that every system has\n";
    }
    if !process.config.is_empty() {
        text += &format!("{} on {}", escaped_path(&process.config), escaped(&process.host));
        if let Some(reload) = &process.last_reload {
            let ago = human::seconds(process.now - reload.at);
            let outcome = if reload.ok { "ok" } else { "refused" };
            text += &format!("; last reload {ago} ago: {outcome}");
        }
        text.push('\n');
    }
    text
}

/// Whether routers send traffic here, in a line.
fn announced(announce: &AnnounceStatus) -> String {
    let state = match (announce.announced, announce.wanted) {
        (Some(true), true) => "announced",
        (Some(true), false) => "announced, to be withdrawn",
        (_, true) => "to be announced",
        (Some(false), false) => "withdrawn",
        (None, false) => "neither announced nor withdrawn yet",
    };
    match &announce.failure {
        Some(failure) => format!("{state}: {}\n", escaped(failure)),
        None => format!("{state}\n"),
    }
}

fn unless_empty<const N: usize>(table: &Table<N>) -> String {
    if table.is_empty() { String::new() } else { format!("{table}\n") }
}

/// The backends that are not in service, and why.
fn trouble(clusters: &[ClusterStatus]) -> Table<5> {
    let mut table = Table::new([
        ("OUT OF SERVICE", Align::Left),
        ("STATE", Align::Left),
        ("SINCE", Align::Right),
        ("TIME LEFT", Align::Right),
        ("WHY", Align::Left),
    ]);
    let all = clusters.iter().flat_map(|c| c.backends.iter().map(move |backend| (c, backend)));
    let is_out = |backend: &BackendStatus| {
        backend.state.is_trouble() || backend.state == BackendState::Draining
    };
    for (cluster, backend) in all.filter(|(_, backend)| is_out(backend)) {
        let Some(reason) = &backend.reason else { continue };
        table.row([
            format!("{}/{}", escaped(&cluster.name), backend_name(backend)),
            backend.state.as_str().to_owned(),
            backend.since_seconds.map_or("-".to_owned(), human::seconds),
            backend.until_seconds.map_or("-".to_owned(), human::seconds),
            escaped(reason),
        ]);
    }
    table
}

/// The names that do not resolve.
fn names(names: &[NameStatus]) -> Table<4> {
    let mut table = Table::new([
        ("NOT RESOLVED", Align::Left),
        ("SINCE", Align::Right),
        ("ADDRESSES KEPT", Align::Right),
        ("WHY", Align::Left),
    ]);
    for name in names.iter().filter(|name| !name.resolves) {
        table.row([
            escaped(&name.name),
            name.since_seconds.map_or("-".to_owned(), human::seconds),
            name.addresses.len().to_string(),
            escaped(name.reason.as_deref().unwrap_or("-")),
        ]);
    }
    table
}

/// What the kernel forwards past the sockets, or why it does not.
fn fast_paths(listeners: &[ListenerStatus]) -> Table<4> {
    let mut table = Table::new([
        ("KERNEL PATH", Align::Left),
        ("FLOWS", Align::Right),
        ("TO BACKEND", Align::Right),
        ("TO CLIENT", Align::Right),
    ]);
    for listener in listeners {
        let Some(path) = &listener.fast_path else { continue };
        let name = escaped(&listener.name);
        let name = match &path.reason {
            Some(reason) => format!("{name}: off, {}", escaped(reason)),
            None => name,
        };
        let (to_backend, to_client) = (path.datagrams.to_backend, path.datagrams.to_client);
        table.row([
            name,
            path.flows.to_string(),
            human::count(to_backend),
            human::count(to_client),
        ]);
    }
    table
}

/// How a state is drawn in a terminal, from the words that begin with it.
fn state_style(text: &str) -> Style {
    let word = text.split([' ', ',']).next().unwrap_or_default();
    match word {
        "up" => AnsiColor::Green.on_default(),
        "down" | "ejected" => AnsiColor::Red.on_default().bold(),
        "draining" => AnsiColor::Yellow.on_default(),
        _ => Style::new(),
    }
}

/// How long it has been running.
pub(super) fn uptime(status: &StatusDocument) -> String {
    // A document of whatever origin: a number that is no time is none.
    human::span(Duration::try_from_secs_f64(status.uptime_seconds).unwrap_or_default())
}

fn listeners(listeners: &[ListenerStatus]) -> Table<6> {
    let mut table = Table::new([
        ("LISTENER", Align::Left),
        ("ADDRESS", Align::Left),
        ("CLUSTER", Align::Left),
        ("FLOWS", Align::Right),
        ("LIMIT", Align::Right),
        ("OPENED", Align::Right),
    ]);
    for listener in listeners {
        let flows = |figure| flows_of(listener, figure);
        table.row([
            escaped(&listener.name),
            escaped(&listener.address),
            escaped(&listener.cluster),
            flows(listener.flows_active),
            flows(listener.flows_max),
            flows(listener.flows_opened),
        ]);
    }
    table
}

/// A figure of a listener's flows. One that sends one way makes none, and has no limit of them.
pub(super) fn flows_of(listener: &ListenerStatus, figure: u64) -> String {
    if listener.flows_max == 0 { "-".to_owned() } else { human::count(figure) }
}

/// The way of clients' datagrams through a listener.
const TO_BACKENDS: &str = "clients → backends";
const TO_CLIENTS: &str = "backends → clients";

/// What the kernel dropped before Flowgate received it.
const BY_KERNEL: &str = "by the kernel: full buffer, or wrong checksum";

/// Both ways through a listener, and that of the copies that its mirror gets.
fn ways(listener: &ListenerStatus) -> Vec<(String, &LedgerDoc)> {
    let mirror = listener.mirror.as_ref();
    let to_mirror =
        mirror.map(|mirror| (format!("copies → {}", escaped(&mirror.cluster)), &mirror.to_backend));
    let both = [
        (TO_BACKENDS.to_owned(), &listener.to_backend),
        (TO_CLIENTS.to_owned(), &listener.to_client),
    ];
    both.into_iter().chain(to_mirror).collect()
}

fn datagrams(listeners: &[ListenerStatus]) -> Table<6> {
    let mut table = Table::new([
        ("DATAGRAMS", Align::Left),
        ("DIRECTION", Align::Left),
        ("RECEIVED", Align::Right),
        ("FORWARDED", Align::Right),
        ("DROPPED", Align::Right),
        ("BYTES", Align::Right),
    ]);
    for listener in listeners {
        for (way, ledger) in ways(listener) {
            table.row([
                escaped(&listener.name),
                way,
                human::count(ledger.received.datagrams),
                human::count(ledger.forwarded.datagrams),
                human::count(ledger.dropped_total().datagrams),
                human::bytes(ledger.forwarded.bytes),
            ]);
        }
    }
    table
}

/// The first column is what `flowgate drain` takes.
fn backends(clusters: &[ClusterStatus]) -> Table<10> {
    let mut table = Table::new([
        ("BACKEND", Align::Left),
        ("BALANCE", Align::Left),
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("SHARE", Align::Right),
        ("FLOWS", Align::Right),
        ("SENT", Align::Right),
        ("BYTES", Align::Right),
        ("REPLIES", Align::Right),
        ("BYTES", Align::Right),
    ]);
    for cluster in clusters {
        let (name, balance) = (escaped(&cluster.name), escaped(&cluster.balance));
        if cluster.backends.is_empty() {
            let mut cells = [const { String::new() }; 10];
            (cells[0], cells[1], cells[2]) = (format!("{name}/"), balance, "no backends".into());
            table.row(cells);
            continue;
        }
        let all = cluster.backends.iter().map(|backend| backend.datagrams_to).sum();
        for backend in &cluster.backends {
            table.row([
                format!("{name}/{}", backend_name(backend)),
                balance.clone(),
                state(backend),
                weight(backend),
                if all == 0 { "-".into() } else { human::percent(backend.datagrams_to, all) },
                human::count(backend.flows_active),
                human::count(backend.datagrams_to),
                human::bytes(backend.bytes_to),
                human::count(backend.datagrams_from),
                human::bytes(backend.bytes_from),
            ]);
        }
    }
    table
}

/// A backend's address, and the name that it was resolved from.
pub(super) fn backend_name(backend: &BackendStatus) -> String {
    match &backend.name {
        Some(name) => format!("{} ({})", backend.address, escaped(name)),
        None => backend.address.to_string(),
    }
}

/// Its weight, and what the configuration says where an operator has given it another.
fn weight(backend: &BackendStatus) -> String {
    match backend.configured_weight {
        Some(configured) => format!("{} (configured: {configured})", backend.weight),
        None => backend.weight.to_string(),
    }
}

/// How it stands, and how many datagrams it was to get and did not.
fn state(backend: &BackendStatus) -> String {
    let backup = if backend.backup { " (backup)" } else { "" };
    let missed = match backend.datagrams_dropped {
        0 => String::new(),
        missed => format!(", {} not sent", human::count(missed)),
    };
    format!("{}{backup}{missed}", backend.state.as_str())
}

/// What was dropped, with what the kernel dropped before Flowgate could see it.
fn drops(listeners: &[ListenerStatus]) -> String {
    let mut table = Table::new([
        ("DROPPED BY", Align::Left),
        ("DIRECTION", Align::Left),
        ("REASON", Align::Left),
        ("DATAGRAMS", Align::Right),
        ("BYTES", Align::Right),
    ]);
    for listener in listeners {
        let name = escaped(&listener.name);
        for (way, ledger) in ways(listener) {
            for (reason, dropped) in &ledger.dropped {
                table.row([
                    name.clone(),
                    way.clone(),
                    escaped(reason),
                    human::count(dropped.datagrams),
                    human::bytes(dropped.bytes),
                ]);
            }
        }
        let by_kernel =
            [(TO_BACKENDS, listener.socket_drops), (TO_CLIENTS, listener.upstream_socket_drops)];
        for (way, drops) in by_kernel.into_iter().filter(|(_, drops)| *drops > 0) {
            table.row([
                name.clone(),
                way.to_owned(),
                BY_KERNEL.to_owned(),
                human::count(drops),
                "-".to_owned(),
            ]);
        }
    }
    if table.is_empty() { "Nothing was dropped.\n".to_owned() } else { table.to_string() }
}

#[cfg(test)]
pub(super) mod tests;
