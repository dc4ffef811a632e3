//! `[announce]` and `[listener.announce]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::announce::{Announce, AnnounceBy};
use crate::reader::{Claims, Field, Item, Table};
use crate::value::{duration, integer, network, text};

const BY: &str = "one of command, bird and exabgp";

/// A bird that is asked more often has nothing else to do.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Who is told of something already.
pub(super) type AnnouncedBy = Claims<AnnounceBy>;

/// The table under `announce`, if there is one. Nobody is told of two things, which may differ.
pub(super) fn announce<'t>(
    table: &'t Table<'_>,
    announced_by: &mut AnnouncedBy,
) -> Field<'t, Announce> {
    table.get("announce", |item| {
        let announce = item.table("a table", |table| read(table, item))?;
        let alone = each(&announce.by).into_iter().all(|by| announced_by.claim(by, item, ONE));
        alone.then_some(announce)
    })
}

const ONE: &str = "a command, a protocol or routes that no other table announces by";

/// What is told apart, as routes are.
fn each(by: &AnnounceBy) -> Vec<AnnounceBy> {
    let AnnounceBy::ExaBgp { routes, .. } = by else { return vec![by.clone()] };
    let alone =
        |route: &IpNet| AnnounceBy::ExaBgp { routes: vec![*route], next_hop: String::new() };
    routes.iter().map(alone).collect()
}

fn read(table: &Table<'_>, item: &Item<'_>) -> Option<Announce> {
    let min_backends_up = table.get("min_backends_up", integer(0..=u32::MAX)).or(1);
    let rise = table.get("rise", integer(1..=u32::MAX)).or(2);
    let fall = table.get("fall", integer(1..=u32::MAX)).or(3);
    let interval =
        table.get("interval", duration(MIN_INTERVAL..=MAX_INTERVAL)).or(Duration::from_secs(1));
    let command = table.get("command", command);
    let bird = table.get("bird", bird);
    let exabgp = table.get("exabgp", exabgp);
    let said = [&command.item, &bird.item, &exabgp.item];
    if said.iter().filter(|item| item.value().is_some()).count() != 1 {
        return item.refuse(BY);
    }
    let by = command.value.or(bird.value).or(exabgp.value)?;
    Some(Announce { min_backends_up, rise, fall, interval, by })
}

fn command(item: &Item<'_>) -> Option<AnnounceBy> {
    const COMMAND: &str = "a program and its arguments, such as [\"/etc/flowgate/announce\"]";
    let words = item.list(COMMAND, |item| match text(item) {
        Some(word) if !word.contains('\0') => Some(word.to_owned()),
        _ => item.refuse(COMMAND),
    })?;
    match words.first() {
        Some(program) if !program.is_empty() => Some(AnnounceBy::Command(words)),
        _ => item.refuse(COMMAND),
    }
}

fn bird(item: &Item<'_>) -> Option<AnnounceBy> {
    item.table("{ socket = \"/run/bird/bird.ctl\", protocol = NAME }", |table| {
        let socket = table.require("socket", |item| match text(item) {
            Some(path) if !path.is_empty() && !path.contains('\0') => Some(PathBuf::from(path)),
            _ => item.refuse("the path of bird's control socket, such as \"/run/bird/bird.ctl\""),
        });
        let protocol = table.require("protocol", |item| {
            // It is put into a command of bird's.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.*".contains(c);
            match text(item) {
                Some(name) if !name.is_empty() && name.chars().all(is_plain) => {
                    Some(name.to_owned())
                }
                _ => item.refuse("the name of a protocol of bird's, such as \"anycast\""),
            }
        });
        Some(AnnounceBy::Bird { socket: socket.value?, protocol: protocol.value? })
    })
}

fn exabgp(item: &Item<'_>) -> Option<AnnounceBy> {
    const ROUTES: &str = "one or more routes, such as [\"192.0.2.53/32\"]";
    item.table("{ routes = [\"192.0.2.53/32\"], next_hop = \"self\" }", |table| {
        let routes = table
            .require("routes", |item| item.list(ROUTES, network))
            .when(|routes| !routes.is_empty(), ROUTES);
        let next_hop = table.get("next_hop", |item| match text(item) {
            Some(hop) if hop == "self" || hop.parse::<IpAddr>().is_ok() => Some(hop.to_owned()),
            _ => item.refuse("\"self\", or an address"),
        });
        if next_hop.is_refused() {
            return None;
        }
        let next_hop = next_hop.or("self".to_owned());
        Some(AnnounceBy::ExaBgp { routes: routes.value?, next_hop })
    })
}
