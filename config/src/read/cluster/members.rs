//! `backends` of a `[cluster.NAME]`.

use std::net::IpAddr;

use flowgate_core::config::ServerId;
use toml::de::DeValue;

use super::affinity::server_id;
use super::mode::Modes;
use crate::reader::{Claims, Item};
use crate::value::{ZONE, boolean, count, needs_a_zone, socket_address, text, with_port};
use crate::{Member, Target};

const LIST: &str = "a list of backends, such as [\"10.0.0.1:53\"]";

const ADDRESS: &str = "an IP address and port, such as \"10.0.0.1:53\" or \"[2001:db8::1]:53\"";

const ONE_HOST: &str = "the address of one host, such as \"10.0.0.1:53\": a broadcast is sent to \
                        nobody, and what answers a multicast has another address";

const TARGET: &str = "an IP address or a name, and a port, such as \"10.0.0.1:53\", \
                      \"[2001:db8::1]:53\" or \"resolver.internal:53\"";

/// The longest host name and the longest part between its dots, in bytes: those of DNS.
const HOST: usize = 253;
const LABEL: usize = 63;

/// Reads the list of a cluster of this mode.
pub(super) fn members(item: &Item<'_>, modes: &Modes<'_>) -> Option<Vec<Member>> {
    let (mut taken, mut ids) = (Claims::new(), Claims::new());
    item.list(LIST, |item| member(item, &mut taken, &mut ids, modes))
}

/// A member is a table, or its target alone.
fn member(
    item: &Item<'_>,
    taken: &mut Claims<Target>,
    ids: &mut Claims<ServerId>,
    modes: &Modes<'_>,
) -> Option<Member> {
    let mut target = |item: &Item<'_>| {
        let target = target(item, modes.has_flows())?;
        let allowed = "a backend that the cluster does not have yet";
        taken.claim(without_final_dot(&target), item, allowed).then_some(target)
    };
    if !matches!(item.value(), Some(DeValue::Table(_))) {
        let target = target(item);
        if !item.is_described() {
            return Some(Member {
                target: target?,
                weight: 1,
                backup: false,
                max_flows: 0,
                answers: true,
                server_id: None,
            });
        }
    }
    item.table("a backend", |table| {
        let target = table.require("address", target).value;
        let weight = table.get("weight", count).or(1);
        let backup = table.get("backup", boolean).or(false);
        let max_flows = table
            .get("max_flows", count)
            .when(|n| modes.is_session() || *n == 0, "0 in any mode but \"session\"")
            .or(0);
        let server_id = table.get("server_id", |item| server_id(item, ids));
        if server_id.is_refused() {
            return None;
        }
        let server_id = server_id.value;
        Some(Member { target: target?, weight, backup, max_flows, answers: true, server_id })
    })
}

/// A target in the spelling that all names of one host share.
fn without_final_dot(target: &Target) -> Target {
    match target {
        Target::Name { host, port } => {
            Target::Name { host: host.trim_end_matches('.').to_owned(), port: *port }
        }
        Target::Address(_) => target.clone(),
    }
}

/// An address or a name to send to, and to hear from if it `answers`.
fn target(item: &Item<'_>, answers: bool) -> Option<Target> {
    let written = text(item).unwrap_or_default();
    match Target::parse_for(written, answers) {
        Ok(target) => Some(target),
        Err(allowed) => item.refuse_typo(allowed, with_port(written).as_deref()),
    }
}

impl Target {
    /// What a text such as `10.0.0.1:53` or `resolver.internal:53` stands for, of which answers are
    /// to come.
    ///
    /// # Errors
    ///
    /// What is allowed instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_for(text, true)
    }

    fn parse_for(text: &str, answers: bool) -> Result<Self, String> {
        if let Some(address) = socket_address(text) {
            return match address.ip() {
                ip if address.port() == 0 || ip.is_unspecified() => Err(ADDRESS.into()),
                IpAddr::V4(ip) if ip.is_broadcast() => Err(ONE_HOST.into()),
                ip if ip.is_multicast() && answers => Err(ONE_HOST.into()),
                _ if needs_a_zone(address) => Err(ZONE.into()),
                _ => Ok(Self::Address(address)),
            };
        }
        if text.contains('%') {
            return Err(ZONE.into());
        }
        if with_port(text).is_some() {
            return Err(ADDRESS.into());
        }
        let (host, digits) = text.rsplit_once(':').unwrap_or((text, ""));
        let host = host.to_ascii_lowercase();
        if looks_like_address(&host) {
            return Err(ADDRESS.into());
        }
        if !is_host(&host) {
            return Err(TARGET.into());
        }
        match digits.parse() {
            Ok(port @ 1..) if is_number(digits) => Ok(Self::Name { host, port }),
            _ => Err(format!("a port from 1 to 65535 after the name, such as \"{host}:53\"")),
        }
    }
}

/// Whether what should be a host is rather an IP address with a slip in it. As in URLs, one whose
/// last label is a number, in hexadecimal digits too, cannot be a name.
fn looks_like_address(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x");
    let is_hex = hex.is_some_and(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
    host.contains([':', '[', ']']) || is_number(last) || is_hex
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit())
}

/// Whether `host` is a name as RFC 1123 has it. Underscores are tolerated, as DNS does.
pub(super) fn is_host(host: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label = |label: &str| {
        (1..=LABEL).contains(&label.len())
            && label.chars().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= HOST && host.split('.').all(is_label)
}
