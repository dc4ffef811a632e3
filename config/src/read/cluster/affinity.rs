//! What new flows are placed by: `affinity`, and `[[cluster.NAME.quic_lb]]`.

use flowgate_core::config::{Affinity, Balance, ServerId};
use flowgate_quic_lb::QuicLbConfig;
use toml::de::DeValue;

use crate::error::Fault;
use crate::keys::{QuicLbKey, QuicLbSpec};
use crate::reader::{Claims, Field, Item, Table};
use crate::value::{choice, integer, text};
use crate::{Member, Target, hex};

/// Where in a datagram a key may begin, and how long it may be.
const MAX_OFFSET: u16 = 65_506;
const MAX_KEY: u8 = 64;

/// The longest connection id of DTLS that is looked at.
const MAX_CID: u8 = 20;

const WORDS: &[(&str, Affinity)] = &[
    ("source-ip", Affinity::SourceIp),
    ("source-ip-port", Affinity::SourceIpPort),
    ("host", Affinity::Host),
    ("quic", Affinity::Quic),
    ("wireguard", Affinity::WireGuard),
    ("sip-call-id", Affinity::SipCallId),
];

/// `"source-ip"` and others, or a table.
pub(super) fn affinity(item: &Item<'_>) -> Option<Affinity> {
    if !matches!(item.value(), Some(DeValue::Table(_))) {
        let word = choice(WORDS)(item);
        if !item.is_described() {
            return word;
        }
    }
    const TABLE: &str = "{ dtls-cid = LENGTH } or { offset = N, length = M }";
    item.table(TABLE, |table| {
        let cid = table.get("dtls-cid", integer(1..=MAX_CID));
        let offset = table.get("offset", integer(0..=MAX_OFFSET));
        let length = table.get("length", integer(1..=MAX_KEY));
        if cid.is_refused() || offset.is_refused() || length.is_refused() {
            return None;
        }
        match (cid.value, offset.value, length.value) {
            (Some(length), None, None) => Some(Affinity::DtlsCid { length }),
            (None, Some(offset), Some(length)) => Some(Affinity::Offset { offset, length }),
            _ => item.refuse(TABLE),
        }
    })
}

/// What would count where the other keys make it count for nothing.
pub(super) fn check(affinity: &Field<'_, Affinity>, balance: Balance, members: Option<&[Member]>) {
    let Some(value) = affinity.value else { return };
    let is_hashed = matches!(balance, Balance::Rendezvous | Balance::Maglev);
    let needs_hash =
        matches!(value, Affinity::Host | Affinity::SipCallId | Affinity::Offset { .. });
    if needs_hash && !is_hashed {
        affinity.item.warn(Fault::NoEffect {
            because: "only balance = \"rendezvous\" and \"maglev\" look at it",
        });
    }
    if value == Affinity::Host {
        let hosts = members.unwrap_or_default().iter().map(|member| host(&member.target));
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort_unstable();
        if let Some(pair) = hosts.windows(2).find(|pair| pair[0] == pair[1]) {
            affinity.item.refuse::<()>(format_args!(
                "\"host\" only where each backend has a host of its own: {} has two",
                pair[0]
            ));
        }
    }
}

/// What has to be learned from answers, where there are none.
pub(super) fn check_direct(affinity: &Field<'_, Affinity>, quic_lb: Option<&[QuicLbSpec]>) {
    let is_learned = match affinity.value {
        Some(Affinity::WireGuard | Affinity::DtlsCid { .. }) => true,
        Some(Affinity::Quic) => quic_lb.is_some_and(<[_]>::is_empty),
        _ => false,
    };
    if is_learned {
        affinity.item.refuse::<()>(
            "what each datagram shows by itself: source-ip, source-ip-port, host, sip-call-id, \
             { offset = N, length = M }, or quic with [[cluster.NAME.quic_lb]], as no answer comes \
             by here where return = \"direct\"",
        );
    }
}

fn host(target: &Target) -> String {
    match target {
        Target::Address(address) => address.ip().to_string(),
        Target::Name { host, .. } => host.clone(),
    }
}

/// `quic_lb`: a list of configurations.
pub(super) fn quic_lb(table: &Table<'_>, affinity: Affinity) -> Option<Vec<QuicLbSpec>> {
    let mut rotations = Claims::new();
    let specs = table.get("quic_lb", |item| {
        item.list("[[cluster.NAME.quic_lb]] tables", |item| spec(item, &mut rotations))
    });
    if specs.item.value().is_some() && affinity != Affinity::Quic {
        specs.item.warn(Fault::NoEffect { because: "`affinity` is not \"quic\"" });
    }
    if specs.is_refused() { None } else { Some(specs.or(Vec::new())) }
}

fn spec(item: &Item<'_>, rotations: &mut Claims<u8>) -> Option<QuicLbSpec> {
    item.table("a [[cluster.NAME.quic_lb]] table", |table| {
        let rotation = table.require("rotation", integer(0..=6_u8));
        let server_id_length = table.require("server_id_length", integer(1..=15_u8)).value;
        let nonce_length = table.require("nonce_length", integer(4..=18_u8));
        let key = table.get("key_file", |item| {
            let path = text(item).filter(|path| !path.is_empty() && !path.contains('\0'));
            let path = path.or_else(|| item.refuse("the path of a file with a key"))?;
            Some(QuicLbKey { path: path.into(), place: item.place() })
        });
        if key.is_refused() {
            return None;
        }
        let rotation_value = rotation.value?;
        let is_free = rotations.claim(rotation_value, &rotation.item, "a rotation of its own");
        let lengths = (usize::from(server_id_length?), usize::from(nonce_length.value?));
        match QuicLbConfig::new(rotation_value, lengths.0, lengths.1) {
            Ok(config) => is_free.then_some(QuicLbSpec { config, key: key.value }),
            Err(error) => nonce_length.item.refuse(error),
        }
    })
}

/// `server_id` of a backend, different from those of the others.
pub(super) fn server_id(item: &Item<'_>, taken: &mut Claims<ServerId>) -> Option<ServerId> {
    let bytes = text(item).and_then(hex::decode);
    let id = bytes.and_then(|bytes| ServerId::new(&bytes).ok());
    let id = id.or_else(|| item.refuse("1 to 15 bytes in hexadecimal, such as \"0a0b\""))?;
    taken.claim(id, item, "a server_id of its own").then_some(id)
}

/// The lengths that server ids may have beside the configurations of QUIC-LB.
pub(super) fn check_lengths(item: &Item<'_>, members: &[Member], specs: &[QuicLbSpec]) {
    let lengths: Vec<usize> = specs.iter().map(|spec| spec.config.server_id_length()).collect();
    for member in members {
        let Some(id) = member.server_id else { continue };
        if !lengths.is_empty() && !lengths.contains(&id.len()) {
            item.refuse::<()>(format_args!(
                "server ids as long as server_id_length says, which {id} is not"
            ));
        }
    }
}
