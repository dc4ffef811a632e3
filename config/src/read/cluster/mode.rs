//! `mode`, `reply_from` and `mirror` of a `[cluster.NAME]`, and what does not go with them.

use flowgate_core::config::{Balance, Mode, ReplyFrom, SendProxyProtocol};
use toml::de::DeValue;

use super::Known;
use crate::cluster::{Member, Target};
use crate::error::Fault;
use crate::nearest::nearest;
use crate::reader::{Field, Item, Table};
use crate::schema::Shape;
use crate::value::{choice, socket_address, text, whole};

const KINDS: &[(&str, Kind)] =
    &[("session", Kind::Session), ("one-way", Kind::OneWay), ("fan-out", Kind::FanOut)];

/// Whether answers go from the backends straight to the clients.
const RETURNS: &[(&str, bool)] = &[("nat", false), ("direct", true)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Session,
    OneWay,
    FanOut,
}

/// What a cluster does with datagrams, as far as it is known before its backends are.
pub(super) struct Modes<'t> {
    kind: Kind,
    /// Whether answers go from the backends straight to the clients.
    is_direct: bool,
    is_refused: bool,
    reply_from: Field<'t, String>,
    mirror: Field<'t, (String, u32)>,
}

impl<'t> Modes<'t> {
    /// Reads the keys of a cluster called `own` among those that are known.
    pub(super) fn read(table: &'t Table<'_>, own: &str, known: &Known) -> Self {
        let kind = table.get("mode", choice(KINDS));
        let is_refused = kind.is_refused();
        let kind = kind.or(Kind::Session);
        let is_direct = table
            .get("return", choice(RETURNS))
            .when(
                |is_direct| !is_direct || kind == Kind::Session || is_refused,
                "nat, or direct beside mode = \"session\"",
            )
            .or(false);
        let reply_from = table
            .get("reply_from", |item| match text(item) {
                Some(written) => Some(written.to_owned()),
                None => item.refuse(REPLY_FROM),
            })
            .when(|_| kind == Kind::FanOut || is_refused, "nothing but beside mode = \"fan-out\"");
        let mirror = table.get("mirror", |item| mirror(item, own, known)).when(
            |_| kind == Kind::Session && !is_direct,
            "nothing but beside mode = \"session\" and return = \"nat\"",
        );
        Self { kind, is_direct, is_refused, reply_from, mirror }
    }

    /// Whether clients get answers, for which there are flows. Where that is not known, nothing is
    /// held against keys that need them.
    pub(super) fn has_flows(&self) -> bool {
        let is_answered = || self.reply_from.value.as_deref().is_some_and(|from| from != "none");
        match self.kind {
            _ if self.is_refused || self.reply_from.is_refused() => true,
            Kind::Session => !self.is_direct,
            Kind::OneWay => false,
            Kind::FanOut => is_answered(),
        }
    }

    pub(super) fn is_session(&self) -> bool {
        self.kind == Kind::Session && !self.is_direct
    }

    /// Whether answers go from the backends straight to the clients.
    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Whether each client has a flow for each backend.
    pub(super) fn is_race(&self) -> bool {
        self.kind == Kind::FanOut && self.reply_from.value.as_deref() == Some("first")
    }

    /// Narrows `balance` to what needs no flows where there are none.
    pub(super) fn fit_balance<'f>(&self, balance: Field<'f, Balance>) -> Field<'f, Balance> {
        if self.kind == Kind::FanOut && balance.value.is_some() {
            balance.item.warn(Fault::NoEffect { because: "mode = \"fan-out\" sends to all" });
        }
        let balance = balance.when(
            |balance| !self.is_direct || matches!(balance, Balance::Rendezvous | Balance::Maglev),
            "rendezvous or maglev, as nothing else keeps a client with its backend where return = \
             \"direct\" has no flows",
        );
        let counts_flows = |b: &Balance| matches!(b, Balance::LeastFlows | Balance::PowerOfTwo);
        balance.when(
            |balance| self.kind != Kind::OneWay || !counts_flows(balance),
            "round-robin, random, rendezvous or maglev, as mode = \"one-way\" has no flows to count",
        )
    }

    /// Narrows `send_proxy_protocol`: only a flow has a first datagram.
    pub(super) fn fit_proxy<'f>(
        &self,
        field: Field<'f, SendProxyProtocol>,
    ) -> Field<'f, SendProxyProtocol> {
        field.when(
            |which| self.is_session() || *which != SendProxyProtocol::First,
            "off or every; only in mode = \"session\" has a backend a first datagram of a client",
        )
    }

    /// Narrows a key that speaks of flows or answers to `inert`, where there are none.
    pub(super) fn fit<'f, T: PartialEq>(
        &self,
        field: Field<'f, T>,
        inert: T,
        written: &str,
    ) -> Field<'f, T> {
        let allowed = format!("{written}, as there are no flows without answers to clients");
        field.when(|value| self.has_flows() || *value == inert, &allowed)
    }

    /// Notes keys that change nothing where there are no flows.
    pub(super) fn warn_of_no_effect(&self, items: &[&Item<'_>]) {
        if self.has_flows() {
            return;
        }
        for item in items.iter().filter(|item| item.value().is_some()) {
            item.warn(Fault::NoEffect { because: "there are no flows without answers to clients" });
        }
    }

    /// The mode, now that the backends are known, and the name of the mirror. Marks the backends
    /// that may not answer.
    pub(super) fn finish(self, members: &mut [Member]) -> Option<(Mode, Option<String>)> {
        if self.is_refused || self.reply_from.is_refused() || self.mirror.is_refused() {
            return None;
        }
        let (mirror, mirrored_per_million) = self.mirror.value.unzip();
        let mode = match self.kind {
            // Nothing comes back.
            Kind::Session if self.is_direct => Mode::OneWay,
            Kind::Session => {
                Mode::Session { mirrored_per_million: mirrored_per_million.unwrap_or(0) }
            }
            Kind::OneWay => Mode::OneWay,
            Kind::FanOut => Mode::FanOut { reply_from: reply_from(&self.reply_from, members)? },
        };
        Some((mode, mirror))
    }
}

const REPLY_FROM: &str = "none, first, or one of the cluster's backends as it stands in the list";

fn reply_from(field: &Field<'_, String>, members: &mut [Member]) -> Option<ReplyFrom> {
    let written = match field.value.as_deref() {
        None | Some("none") => return Some(ReplyFrom::Nobody),
        Some("first") => return Some(ReplyFrom::First),
        Some(written) => written,
    };
    let address = socket_address(written);
    let is_meant = |target: &Target| match target {
        Target::Address(target) => Some(*target) == address,
        Target::Name { host, port } => {
            let written = written.to_ascii_lowercase();
            written == *host || written == format!("{host}:{port}")
        }
    };
    if !members.iter().any(|member| is_meant(&member.target)) {
        let known: Vec<_> = members.iter().map(|member| member.target.to_string()).collect();
        let known = known.iter().map(String::as_str).chain(["none", "first"]);
        return field.item.refuse_typo(REPLY_FROM, nearest(written, known));
    }
    for member in members {
        member.answers = is_meant(&member.target);
    }
    Some(ReplyFrom::Chosen)
}

/// The cluster that gets copies, and of how many flows in a million.
fn mirror(item: &Item<'_>, own: &str, known: &Known) -> Option<(String, u32)> {
    item.table("a table such as { cluster = \"shadow\", sample = 0.01 }", |table| {
        let cluster = table.require("cluster", |item| {
            let written = text(item).unwrap_or_default();
            let others = || known.names.iter().map(String::as_str).filter(|name| *name != own);
            if others().any(|name| name == written) {
                return Some(written.to_owned());
            }
            let allowed = "the NAME of another [cluster.NAME]";
            item.refuse_name(allowed, nearest(written, others()))
        });
        let cluster = cluster.when(
            |name| !known.transparent.contains(name),
            "the NAME of a [cluster.NAME] with another source than \"client\": copies leave by \
             sockets that all clients share",
        );
        let sample = table.get("sample", per_million);
        let is_refused = sample.is_refused();
        let share = sample.or(MILLION);
        cluster.value.filter(|_| !is_refused).map(|cluster| (cluster, share))
    })
}

const MILLION: u32 = 1_000_000;

/// A share from 0 to 1, in millionths.
fn per_million(item: &Item<'_>) -> Option<u32> {
    item.takes(|| Shape::Number);
    let written = match item.value() {
        Some(DeValue::Float(number)) => number.as_str().replace('_', "").parse::<f64>().ok(),
        Some(DeValue::Integer(number)) => match whole(number) {
            Some(0) => Some(0.0),
            Some(1) => Some(1.0),
            _ => None,
        },
        _ => None,
    };
    let share = written.filter(|share| (0.0..=1.0).contains(share)).map(|share| {
        // A share that is not 0 does not become 0.
        let millionths = (share * f64::from(MILLION)).round() as u32;
        if share > 0.0 { millionths.max(1) } else { 0 }
    });
    share.or_else(|| item.refuse("a number from 0 to 1, such as 0.01"))
}
