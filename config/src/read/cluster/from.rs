//! `backends_from` of a `[cluster.NAME]`.

use std::path::PathBuf;
use std::time::Duration;

use super::members::is_host;
use crate::found::{BackendsFrom, Place};
use crate::reader::Item;
use crate::value::{boolean, duration, text};

const PLACES: &str = "one of { file = PATH }, { http = URL } and { srv = NAME }";

const SRV: &str = "a name with SRV records, such as \"_dns._udp.example.internal\"";

const URL: &str = "a URL that begins with http://, such as \"http://127.0.0.1:8500/backends\"; \
                   what needs https or credentials is for flowgate-discover, which writes a file";

pub(super) fn backends_from(item: &Item<'_>) -> Option<BackendsFrom> {
    item.table(PLACES, |table| {
        let file = table.get("file", file);
        let url = table.get("http", url);
        let srv = table.get("srv", srv);
        let allow_empty = table.get("allow_empty", boolean).or(false);
        let interval = table.get("interval", duration(Duration::from_secs(1)..=DAY));
        let is_http = url.item.value().is_some();
        let interval = interval.when(|_| is_http, "nothing but beside http");
        let said = [&file.item, &url.item, &srv.item];
        if said.iter().filter(|item| item.value().is_some()).count() != 1 {
            return item.refuse(PLACES);
        }
        let interval = interval.or(Duration::from_secs(30));
        let place = (file.value.map(Place::File))
            .or(url.value.map(|url| Place::Http { url, interval }))
            .or(srv.value.map(Place::Srv))?;
        Some(BackendsFrom { place, allow_empty })
    })
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn file(item: &Item<'_>) -> Option<PathBuf> {
    match text(item) {
        Some(path) if !path.is_empty() && !path.ends_with('/') && !path.contains('\0') => {
            Some(path.into())
        }
        _ => item.refuse("the path of a file, such as \"/run/flowgate/web.json\""),
    }
}

fn url(item: &Item<'_>) -> Option<String> {
    let written = text(item).unwrap_or_default();
    let rest = written.strip_prefix("http://").unwrap_or_default();
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let is_plain = written.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if is_plain && !host.is_empty() && !host.contains('@') {
        Some(written.to_owned())
    } else {
        item.refuse(URL)
    }
}

fn srv(item: &Item<'_>) -> Option<String> {
    let name = text(item).unwrap_or_default().to_ascii_lowercase();
    if is_host(&name) { Some(name) } else { item.refuse(SRV) }
}
