//! `upstream`, `transactions` and `retry` of a `[cluster.NAME]`: which sockets flows use, what is a flow,
//! and when another backend is asked.

use std::ops::RangeInclusive;
use std::time::Duration;

use flowgate_core::config::{Retry, Source, Transactions, UpstreamMode};
use toml::de::DeValue;

use super::mode::Modes;
use crate::reader::{Field, Item, Table};
use crate::value::{choice, duration, integer};

/// What has taken the place of a key that there was.
const REUSE_IS_GONE: &str = "upstream = \"shared\", which has taken its place: flows share sockets, \
                             and open none of their own";

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
    ("sip", Some(Transactions::Sip)),
];

const OFF_OR_TABLE: &str = "off, or a table such as { after = \"300ms\", times = 1 }";

const OFF: &[(&str, Option<Retry>)] = &[("off", None)];

/// After how long another backend may be asked.
const AFTER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// How many others may be asked.
const MAX_TIMES: u8 = 3;

const ONLY_QUESTIONS: &str = "off, or transactions = \"dns\" or another: only where each question is a \
                              flow of its own can it be asked again, and have one answer";

const NOT_TOO_LATE: &str = "an `after` shorter than idle_timeout and limits.unanswered_timeout: a \
                            question that has ended is not asked again";

const NOT_WITHOUT_QUARANTINE: &str = "off, or an upstream_quarantine above 0s: there the first backend's \
                                      answer is waited for when another is asked";

/// The most bytes that lie before what names a question: those of the longest datagram.
const MAX_BEFORE: u16 = 65_507;

/// What has been read.
pub(super) struct Upstreams<'t> {
    upstream: Field<'t, UpstreamMode>,
    transactions: Field<'t, Option<Transactions>>,
}

impl<'t> Upstreams<'t> {
    pub(super) fn read(table: &'t Table<'_>, modes: &Modes<'_>) -> Self {
        table.refuse_former("upstream_reuse", REUSE_IS_GONE);
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

    /// How many answers end a flow unless it is said: a question has one.
    pub(super) fn usual_responses(&self) -> u32 {
        let named = self.transactions.value.flatten();
        u32::from(named.is_some_and(|named| named.has_one_answer()))
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
        source: Option<&Source>,
        have_ends: bool,
    ) -> Option<(UpstreamMode, Option<Transactions>)> {
        let is_clients = source == Some(&Source::Client);
        let are_named = self.are_named();
        let transactions =
            self.transactions.when(|named| named.is_none() || !is_clients, NOT_FROM_CLIENTS);
        if transactions.is_refused() || self.upstream.is_refused() {
            return None;
        }
        let has_few_ports = source.is_some_and(Source::has_port_range);
        let is_shared =
            modes.is_session() && !is_clients && (are_named || (have_ends && !has_few_ports));
        let usual = if is_shared { UpstreamMode::Shared } else { UpstreamMode::PerFlow };
        Some((self.upstream.or(usual), transactions.or(None)))
    }
}

/// When another backend is asked.
pub(super) fn retry<'t>(table: &'t Table<'_>, are_named: bool) -> Field<'t, Option<Retry>> {
    let retry = table.get("retry", off_or_retry);
    retry.when(|retry| retry.is_none() || are_named, ONLY_QUESTIONS)
}

/// The same, now that it is known how long a flow waits for its answer, and how long what it has left
/// behind is its own.
pub(super) fn fit_retry(
    retry: Field<'_, Option<Retry>>,
    timeout: Duration,
    quarantine: Duration,
) -> Option<Retry> {
    retry
        .when(|retry| retry.is_none_or(|retry| retry.after < timeout), NOT_TOO_LATE)
        .when(|retry| retry.is_none() || !quarantine.is_zero(), NOT_WITHOUT_QUARANTINE)
        .or(None)
}

fn off_or_retry(item: &Item<'_>) -> Option<Option<Retry>> {
    if !matches!(item.value(), None | Some(DeValue::String(_) | DeValue::Table(_))) {
        return item.refuse(OFF_OR_TABLE);
    }
    table_or_word(item, OFF_OR_TABLE, OFF, |table| {
        let after = table.get("after", duration(AFTER)).or(Duration::from_millis(300));
        let times = table.get("times", integer(1..=MAX_TIMES)).or(1);
        Some(Retry { after, times })
    })
}

fn transactions(item: &Item<'_>) -> Option<Option<Transactions>> {
    const TABLE: &str =
        "off, dns, ntp, stun, sip, or a table such as { request = [0, 4], answer = [0, 4] }";
    table_or_word(item, TABLE, TRANSACTIONS, pattern)
}

/// What a table says, or else one of the words that stand for something.
fn table_or_word<T: Copy>(
    item: &Item<'_>,
    allowed: &str,
    words: &'static [(&'static str, Option<T>)],
    read: impl FnOnce(&Table<'_>) -> Option<T>,
) -> Option<Option<T>> {
    let is_table = matches!(item.value(), Some(DeValue::Table(_)));
    if is_table || item.is_described() {
        let read = item.table(allowed, read);
        if !item.is_described() {
            return read.map(Some);
        }
    }
    choice(words)(item)
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
    let numbers = item.list(PLACE, |item| integer(0..=MAX_BEFORE)(item))?;
    let &[offset, length] = &numbers[..] else { return item.refuse(PLACE) };
    match u8::try_from(length) {
        Ok(length @ 1..) => Some((offset, length)),
        _ => item.refuse(PLACE),
    }
}
