//! Readers of single values: each says what it allows and how to tell.

use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::{IpNet, Ipv4Net};
use toml::de::{DeInteger, DeValue};

use crate::nearest::nearest;
use crate::reader::Item;
use crate::schema::Shape;

/// The longest name, in bytes.
const NAME: usize = 255;

pub(crate) fn boolean(item: &Item<'_>) -> Option<bool> {
    item.takes(|| Shape::Boolean);
    match item.value() {
        Some(DeValue::Boolean(value)) => Some(*value),
        _ => item.refuse("true or false"),
    }
}

/// A whole number within `range`.
pub(crate) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&Item<'_>) -> Option<T>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    move |item| {
        item.takes(|| {
            let [least, most] = [range.start(), range.end()].map(ToString::to_string);
            Shape::Integer { least, most }
        });
        let written = match item.value() {
            Some(DeValue::Integer(integer)) => whole(integer),
            _ => None,
        };
        let value = written.and_then(|value| T::try_from(value).ok());
        let allowed = format_args!("a whole number from {} to {}", range.start(), range.end());
        value.filter(|value| range.contains(value)).or_else(|| item.refuse(allowed))
    }
}

/// Any count that fits, zero included.
pub(crate) fn count(item: &Item<'_>) -> Option<u32> {
    integer(0..=u32::MAX)(item)
}

/// One of some words, each with what it means.
pub(crate) fn choice<T: Copy>(
    choices: &'static [(&'static str, T)],
) -> impl Fn(&Item<'_>) -> Option<T> {
    move |item| {
        item.takes(|| Shape::Words(choices.iter().map(|(word, _)| *word).collect()));
        let written = string(item).unwrap_or_default();
        let chosen = choices.iter().find(|(word, _)| *word == written);
        chosen.map(|(_, value)| *value).or_else(|| refuse_word(item, choices.iter().map(|c| c.0)))
    }
}

fn refuse_word<T>(item: &Item<'_>, words: impl Iterator<Item = &'static str> + Clone) -> Option<T> {
    let allowed: Vec<_> = words.clone().collect();
    item.refuse_typo(allowed.join(", "), string(item).and_then(|written| nearest(written, words)))
}

/// A string that is not empty.
pub(crate) fn name(item: &Item<'_>) -> Option<String> {
    match text(item) {
        Some(name) if is_name(name) => Some(name.to_owned()),
        _ => item.refuse(format_args!("a name of 1 to {NAME} bytes")),
    }
}

/// Whether a key may serve as a name.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=NAME).contains(&text.len())
}

/// A duration within `range`, such as `"1m 30s"`.
pub(crate) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Item<'_>) -> Option<Duration> {
    move |item| {
        let written = text(item).and_then(|text| humantime::parse_duration(text).ok());
        written.filter(|duration| range.contains(duration)).or_else(|| {
            let [least, most] =
                [range.start(), range.end()].map(|d| humantime::format_duration(*d));
            let seconds = match item.value() {
                Some(DeValue::Integer(number)) => whole(number).map(|number| format!("{number}s")),
                Some(DeValue::String(text)) if text.parse::<u32>().is_ok() => {
                    Some(format!("{text}s"))
                }
                _ => None,
            };
            let allowed = format_args!("a duration from {least} to {most}, such as \"5s\"");
            item.refuse_typo(allowed, seconds.as_deref())
        })
    }
}

/// A number of bytes within `range`, such as `"4MiB"` or `4194304`.
pub(crate) fn size(range: RangeInclusive<ByteSize>) -> impl Fn(&Item<'_>) -> Option<usize> {
    move |item| {
        item.takes(|| Shape::Text);
        item.takes(|| Shape::Integer { least: "0".into(), most: range.end().as_u64().to_string() });
        let written = match item.value() {
            Some(DeValue::String(text)) => text.parse().ok(),
            Some(DeValue::Integer(bytes)) => {
                whole(bytes).and_then(|bytes| u64::try_from(bytes).ok()).map(ByteSize)
            }
            _ => None,
        };
        let size = written.filter(|size| range.contains(size));
        size.and_then(|size| usize::try_from(size.as_u64()).ok()).or_else(|| {
            let (least, most) = (range.start(), range.end());
            item.refuse(format_args!("a size from {least} to {most}, such as \"4MiB\""))
        })
    }
}

/// A network, such as `"10.0.0.0/8"`, or a single address.
pub(crate) fn network(item: &Item<'_>) -> Option<IpNet> {
    let written = text(item).and_then(|text| {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    });
    written
        .map(without_mapping)
        .or_else(|| item.refuse("a network such as \"10.0.0.0/8\", or an address"))
}

/// A network of IPv4 addresses mapped into IPv6 is taken for the IPv4 network that it stands for:
/// clients of IPv4 have IPv4 addresses here, also at a listener on `[::]`.
fn without_mapping(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED));
    let v4 = v4.and_then(|(ip, prefix_len)| Ipv4Net::new(ip, prefix_len).ok());
    v4.map_or(network, IpNet::V4)
}

/// The most ports of one listener.
const MAX_PORTS: u16 = 4_096;

/// An address to receive on, of any port or of several, of which the last is returned too.
pub(crate) fn listen_addresses(item: &Item<'_>) -> Option<(SocketAddr, Option<u16>)> {
    let written = text(item).unwrap_or_default();
    let range = written.rsplit_once(':').and_then(|(host, ports)| {
        let (first, last) = ports.split_once('-')?;
        Some((format!("{host}:{first}"), last.parse::<u16>().ok()?))
    });
    let Some((first, last)) = range else {
        return listen_address(item, written).map(|address| (address, None));
    };
    let address = listen_address(item, &first)?;
    let more = last.checked_sub(address.port()).filter(|more| (1..MAX_PORTS).contains(more));
    match more {
        Some(_) if address.port() > 0 => Some((address, Some(last))),
        _ => item.refuse(format_args!(
            "from a port to a higher one, of at most {MAX_PORTS}, such as \"0.0.0.0:20000-20999\""
        )),
    }
}

fn listen_address(item: &Item<'_>, written: &str) -> Option<SocketAddr> {
    match socket_address(written) {
        Some(address) if needs_a_zone(address) => item.refuse(ZONE),
        Some(address) => Some(address),
        None => item.refuse_typo(
            "an IP address and port, such as \"0.0.0.0:53\" or \"[::]:53\"",
            with_port(written).as_deref(),
        ),
    }
}

/// The name of an interface, as Linux allows them.
pub(crate) fn interface(item: &Item<'_>) -> Option<String> {
    let is_plain = |c: char| !c.is_whitespace() && !"/:\0".contains(c);
    let is_name = |name: &str| {
        (1..=15).contains(&name.len()) && name.chars().all(is_plain) && !matches!(name, "." | "..")
    };
    match text(item) {
        Some(name) if is_name(name) => Some(name.to_owned()),
        _ => item.refuse("the name of an interface, such as \"eth0\""),
    }
}

/// An IP address that lacks a port, with one.
pub(crate) fn with_port(text: &str) -> Option<String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    Some(SocketAddr::new(bare.parse().ok()?, 53).to_string())
}

/// What a link-local address has to look like.
pub(crate) const ZONE: &str =
    "a link-local address with the interface that it is of, such as \"[fe80::1%eth0]:53\"";

/// Whether an address says nothing without an interface, and has none.
pub(crate) const fn needs_a_zone(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0)
}

/// An address and port. An IPv4 address mapped into IPv6 is taken for the IPv4 address that it
/// stands for, and only a link-local address keeps its zone, so that one address has one spelling.
pub(crate) fn socket_address(text: &str) -> Option<SocketAddr> {
    let address = text.parse().ok().or_else(|| zoned_address(text))?;
    let SocketAddr::V6(v6) = address else { return Some(address) };
    Some(match v6.ip().to_ipv4_mapped() {
        Some(ip) => (ip, v6.port()).into(),
        None if v6.ip().is_unicast_link_local() => address,
        None => (*v6.ip(), v6.port()).into(),
    })
}

/// A link-local address whose zone is the name of an interface. Of a numeric address with a zone
/// the system's resolver asks nobody but the kernel, for the interface's number.
fn zoned_address(text: &str) -> Option<SocketAddr> {
    let (ip, rest) = text.strip_prefix('[')?.split_once('%')?;
    let (zone, port) = rest.split_once("]:")?;
    let ip = ip.parse::<Ipv6Addr>().ok().filter(Ipv6Addr::is_unicast_link_local)?;
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_zone = !zone.is_empty() && zone.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_port || !is_zone {
        return None;
    }
    let mut found = (format!("{ip}%{zone}"), port.parse::<u16>().ok()?).to_socket_addrs().ok()?;
    found.next()
}

/// The string that an item holds.
pub(crate) fn text<'a>(item: &Item<'a>) -> Option<&'a str> {
    item.takes(|| Shape::Text);
    string(item)
}

fn string<'a>(item: &Item<'a>) -> Option<&'a str> {
    match item.value() {
        Some(DeValue::String(text)) => Some(text),
        _ => None,
    }
}

/// The number that was written. None: none that any range here holds.
pub(crate) fn whole(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}
