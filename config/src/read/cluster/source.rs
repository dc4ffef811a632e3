//! `cluster.NAME.source`: the address and port of ours that backends see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_core::config::{PortRange, Source, SourceAddress, UpstreamMode};
use toml::de::DeValue;

use super::mode::Modes;
use crate::cluster::Member;
use crate::reader::{Field, Item};
use crate::value::text;

/// What stands for the client's own address and port.
const CLIENT: &str = "client";

const ALLOWED: &str = "\"client\", an address of this host such as \"10.0.0.5\", one with a range of \
                       ports such as \"10.0.0.5:20000-29999\" or \"0.0.0.0:20000-29999\", or a list \
                       of addresses";

const ALLOWED_IN_A_LIST: &str = "an address of this host such as \"10.0.0.5\", or one with a range of \
                                 ports such as \"10.0.0.5:20000-29999\"";

pub(super) fn source(item: &Item<'_>) -> Option<Source> {
    if let Some(DeValue::Array(_)) = item.value() {
        return list(item).map(Source::Local);
    }
    if item.is_described() {
        list(item);
    }
    let written = text(item).unwrap_or_default();
    if written == CLIENT {
        return Some(Source::Client);
    }
    let one = parse(written).or_else(|| item.refuse(ALLOWED));
    one.map(|address| Source::Local(vec![address]))
}

fn list(item: &Item<'_>) -> Option<Vec<SourceAddress>> {
    let mut seen = Vec::new();
    let addresses = item.list(ALLOWED, |item| {
        let address = text(item).and_then(parse).or_else(|| item.refuse(ALLOWED_IN_A_LIST))?;
        if seen.iter().any(|other| overlap(*other, address)) {
            return item.refuse("each address, or each range of its ports, once");
        }
        seen.push(address);
        Some(address)
    })?;
    if addresses.is_empty() { item.refuse(ALLOWED) } else { Some(addresses) }
}

/// Refuses the client's address where the rest of the cluster makes that impossible.
pub(super) fn fit<'t>(
    source: Field<'t, Source>,
    modes: &Modes<'_>,
    upstream: Option<UpstreamMode>,
    requests: u32,
) -> Field<'t, Source> {
    let is_local = |source: &Source| *source != Source::Client;
    source
        .when(
            |source| !modes.is_direct() || !is_local(source),
            "\"client\", or nothing: return = \"direct\" sends from the clients' addresses",
        )
        .when(
            |source| is_local(source) || modes.is_session() || !modes.has_flows(),
            "an address, or \"client\" in another mode: of the clients' answers to copies there \
             would be two",
        )
        .when(
            |source| is_local(source) || upstream != Some(UpstreamMode::Shared),
            "an address, or \"client\" with upstream = \"per-flow\": a socket that has a client's \
             address serves no other client",
        )
        .when(
            |source| is_local(source) || requests == 0,
            "an address, or \"client\" with requests = 0: two flows of one client cannot both \
             have its address",
        )
}

/// The source, unless it has been refused or there is a backend that nothing reaches from there.
pub(super) fn finish(source: Field<'_, Source>, members: &[Member]) -> Option<Source> {
    if source.is_refused() {
        return None;
    }
    let reaches = |source: &Source| members.iter().find(|member| !member.is_reached_from(source));
    let stranger = source.value.as_ref().and_then(reaches);
    match stranger {
        Some(member) => source.item.refuse(format_args!(
            "an address of the family of all backends, such as {}",
            member.target
        )),
        None => Some(source.or(Source::Any)),
    }
}

/// The clusters of a document, by name, that are to send from their clients' addresses.
pub(super) fn transparent(clusters: &Item<'_>) -> Vec<String> {
    let mut names = Vec::new();
    let Some(DeValue::Table(_)) = clusters.value() else { return names };
    clusters.entries(super::TABLES, |name, cluster| {
        if let Some(DeValue::Table(table)) = cluster.value()
            && let Some(DeValue::String(source)) =
                table.get("source").map(|source| source.get_ref())
            && *source == CLIENT
        {
            names.push(name.to_owned());
        }
    });
    names
}

fn overlap(one: SourceAddress, other: SourceAddress) -> bool {
    let are_apart = one
        .ports
        .zip(other.ports)
        .is_some_and(|(one, other)| one.last < other.first || other.last < one.first);
    one.ip == other.ip && !are_apart
}

fn parse(text: &str) -> Option<SourceAddress> {
    let (address, ports) = match text.parse::<IpAddr>() {
        Ok(ip) => (ip, None),
        Err(_) => {
            let (address, range) = text.rsplit_once(':')?;
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let range = PortRange { first: port(first)?, last: port(last)? };
            (bare(address)?, Some(range))
        }
    };
    if ports.is_some_and(PortRange::is_empty) {
        return None;
    }
    let ip = address.to_canonical();
    if ip.is_multicast() || ip == IpAddr::from([255; 4]) {
        return None;
    }
    match (ip.is_unspecified(), ports) {
        // Neither an address nor ports: nothing is chosen.
        (true, None) => None,
        (is_any, ports) => Some(SourceAddress { ip: (!is_any).then_some(ip), ports }),
    }
}

/// An address as it stands before a port: one of IPv6 in brackets.
fn bare(address: &str) -> Option<IpAddr> {
    let v6 = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => address.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_plain && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(ip: Option<&str>, ports: Option<(u16, u16)>) -> Option<SourceAddress> {
        let ports = ports.map(|(first, last)| PortRange { first, last });
        Some(SourceAddress { ip: ip.map(|ip| ip.parse().unwrap()), ports })
    }

    #[test]
    fn addresses_and_ranges_are_read() {
        let range = Some((20_000, 20_999));
        assert_eq!(parse("10.0.0.5"), local(Some("10.0.0.5"), None));
        assert_eq!(parse("2001:db8::5"), local(Some("2001:db8::5"), None));
        assert_eq!(parse("10.0.0.5:20000-20999"), local(Some("10.0.0.5"), range));
        assert_eq!(parse("[2001:db8::5]:20000-20999"), local(Some("2001:db8::5"), range));
        assert_eq!(parse("0.0.0.0:20000-20999"), local(None, range));
        assert_eq!(parse("[::]:20000-20999"), local(None, range));
        assert_eq!(parse("10.0.0.5:7"), local(Some("10.0.0.5"), Some((7, 7))));
        // One address has one spelling.
        assert_eq!(parse("::ffff:10.0.0.5"), local(Some("10.0.0.5"), None));
        assert_eq!(parse("[::ffff:10.0.0.5]:7"), local(Some("10.0.0.5"), Some((7, 7))));
    }

    #[test]
    fn whatever_chooses_nothing_or_nonsense_is_refused() {
        for text in [
            "",
            "0.0.0.0",
            "::",
            "any",
            "10.0.0.5:",
            "10.0.0.5:0",
            "10.0.0.5:0-9",
            "10.0.0.5:9-7",
            "10.0.0.5:9-70000",
            "10.0.0.5:+7",
            "10.0.0.5:7-",
            "10.0.0.5:-7",
            "10.0.0.5:7-8-9",
            "2001:db8::5:20000-20999",
            "[10.0.0.5]:7",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "10.0.0.5/24",
            "localhost:7",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
