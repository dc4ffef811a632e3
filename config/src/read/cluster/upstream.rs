//! `upstream` and `transactions` of a `[cluster.NAME]`: which sockets flows use, and what is a flow.

use flowgate_core::config::{Source, Transactions, UpstreamMode};
use toml::de::DeValue;

use super::mode::Modes;
use crate::reader::{Field, Item, Table};
use crate::value::{choice, integer};

/// What has taken the place of a key that there was.
const REUSE_IS_GONE: &str = "upstream = \"shared\", which has taken its place: flows share sockets, \
                             and open none of their own";

/// Why a key of the next version is refused.
const NO_RETRY: &str = "nothing: to ask another backend again is not built yet";

const ONLY_IN_SESSIONS: &str = "nothing but beside mode = \"session\": elsewhere the mode says which \
                                sockets there are";

const NO_QUESTIONS: &str = "off, or mode = \"session\": only there has each question one backend, \
                            whose answer goes to the client that asked";

const NOT_FROM_CLIENTS: &str = "off, or another source than \"client\": clients' questions share \
                                sockets, which have no client's address";

const NOT_BY_THEMSELVES: &str = "shared, or transactions = \"off\": questions that are told apart by \
                                 what names them share sockets";

const UPSTREAM: &[(&str, UpstreamMode)] = &[
    (UpstreamMode::PerFlow.as_str(), UpstreamMode::PerFlow),
    (UpstreamMode::Shared.as_str(), UpstreamMode::Shared),
];

const TRANSACTIONS: &[(&str, Option<Transactions>)] = &[
    ("off", None),
    ("dns", Some(Transactions::Dns)),
    ("ntp", Some(Transactions::Ntp)),
    ("stun", Some(Transactions::Stun)),
];

/// The most bytes that lie before what names a question: those of the longest datagram.
const MOST_BEFORE: u16 = 65_507;

/// What has been read.
pub(super) struct Upstreams<'t> {
    upstream: Field<'t, UpstreamMode>,
    transactions: Field<'t, Option<Transactions>>,
}

impl<'t> Upstreams<'t> {
    pub(super) fn read(table: &'t Table<'_>, modes: &Modes<'_>) -> Self {
        table.refuse_former("upstream_reuse", REUSE_IS_GONE);
        table.refuse_former("retry", NO_RETRY);
        let transactions = table.get("transactions", transactions);
        let transactions =
            transactions.when(|asked| asked.is_none() || modes.is_session(), NO_QUESTIONS);
        let are_named = transactions.value.is_some_and(|named| named.is_some());
        let upstream = table.get("upstream", choice(UPSTREAM));
        let upstream = upstream
            .when(|_| modes.is_session(), ONLY_IN_SESSIONS)
            .when(|which| !are_named || *which == UpstreamMode::Shared, NOT_BY_THEMSELVES);
        Self { upstream, transactions }
    }

    /// Whether each question is a flow of its own.
    pub(super) fn are_named(&self) -> bool {
        self.transactions.value.is_some_and(|named| named.is_some())
    }

    /// Which sockets flows are to use, if that is said.
    pub(super) const fn asked_for(&self) -> Option<UpstreamMode> {
        self.upstream.value
    }

    /// What it comes to, now that it is known whether flows end with their answers. Sockets are
    /// shared where they do, unless there are ports for few only: those would be in quarantine after
    /// their flows.
    pub(super) fn finish(
        self,
        modes: &Modes<'_>,
        source: Option<Source>,
        have_ends: bool,
    ) -> Option<(UpstreamMode, Option<Transactions>)> {
        let is_clients = source == Some(Source::Client);
        let are_named = self.are_named();
        let transactions =
            self.transactions.when(|named| named.is_none() || !is_clients, NOT_FROM_CLIENTS);
        if transactions.is_refused() || self.upstream.is_refused() {
            return None;
        }
        let has_few_ports = matches!(source, Some(Source::Local { ports: Some(_), .. }));
        let is_shared =
            modes.is_session() && !is_clients && (are_named || (have_ends && !has_few_ports));
        let usual = if is_shared { UpstreamMode::Shared } else { UpstreamMode::PerFlow };
        Some((self.upstream.or(usual), transactions.or(None)))
    }
}

fn transactions(item: &Item<'_>) -> Option<Option<Transactions>> {
    let is_table = matches!(item.value(), Some(DeValue::Table(_)));
    if is_table || item.is_described() {
        let read = item.table(
            "off, dns, ntp, stun, or a table such as { request = [0, 4], answer = [0, 4] }",
            pattern,
        );
        if !item.is_described() {
            return read.map(Some);
        }
    }
    choice(TRANSACTIONS)(item)
}

/// Where a name stands: how many bytes lie before it, and how many it has.
fn pattern(table: &Table<'_>) -> Option<Transactions> {
    let request = table.require("request", place);
    let answer = table.require("answer", place);
    let length = request.value.map(|(_, length)| length);
    let answer = answer.when(
        |(_, of_answer)| length.is_none_or(|of_request| of_request == *of_answer),
        "the same length as in request: it is the same name",
    );
    let ((request_offset, length), (answer_offset, _)) = (request.value?, answer.value?);
    Some(Transactions::Pattern { request_offset, answer_offset, length })
}

fn place(item: &Item<'_>) -> Option<(u16, u8)> {
    const PLACE: &str = "a place such as [0, 4]: how many bytes lie before the name, and how many it \
                         has, from 1 to 255";
    let numbers = item.list(PLACE, |item| integer(0..=MOST_BEFORE)(item))?;
    let &[offset, length] = &numbers[..] else { return item.refuse(PLACE) };
    match u8::try_from(length) {
        Ok(length @ 1..) => Some((offset, length)),
        _ => item.refuse(PLACE),
    }
}
