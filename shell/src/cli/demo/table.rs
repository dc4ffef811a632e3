//! What the demo shows, as text at most 80 columns wide.

use std::time::Duration;

use flowgate_core::counters::{Counters, Ledger, Traffic};
use hdrhistogram::Histogram;
use ratatui::text::{Line, Span};

use super::human;
use super::paint::Paint;
use super::sample::Stretch;

/// How wide the longest bar is: that of the backend with the largest share.
const BAR: usize = 12;

/// Both tables.
pub(super) fn tables(stretch: Stretch<'_>, paint: &Paint) -> Vec<Line<'static>> {
    let mut lines = backends(stretch, paint);
    lines.push(Line::default());
    lines.extend(ledgers(stretch, paint));
    lines
}

/// Each backend's part of the work during a stretch, and its flows at the end.
fn backends(stretch: Stretch<'_>, paint: &Paint) -> Vec<Line<'static>> {
    let head = format!(
        "{:<15}  weight  {:<19}  flows  {:>8}  {:>7}  {:>7}",
        "backend", "share", "answers", "p50", "p99"
    );
    let mut lines = vec![Line::from(paint.head(head))];
    let all = stretch.round_trips();
    let most = stretch.round_trips_each().map(|each| each.len()).max().unwrap_or(0);
    for (backend, round_trips) in
        stretch.to.balancer.backends.iter().zip(stretch.round_trips_each())
    {
        let bar = human::bar(human::fraction(round_trips.len(), most), BAR);
        let share = human::percent(round_trips.len(), all.len());
        let flows = human::count(backend.flows_active);
        let pace = pace(&round_trips, stretch.length());
        lines.push(Line::from(vec![
            Span::raw(format!("{:<15}  {:>6}  ", backend.address.to_string(), backend.weight)),
            paint.bar(bar),
            Span::raw(format!(" {share:>6}  {flows:>5}  {pace}")),
        ]));
    }
    let flows = human::count(stretch.to.balancer.flows_active);
    let pace = pace(&all, stretch.length());
    lines.push(Line::raw(format!("{:<44}  {flows:>5}  {pace}", "all")));
    lines
}

/// The columns that say how many round trips there were, and how long they took.
fn pace(round_trips: &Histogram<u64>, span: Duration) -> String {
    let rate = human::rate(round_trips.len(), span);
    let (p50, p99) = (quantile(round_trips, 0.50), quantile(round_trips, 0.99));
    format!("{rate:>8}  {p50:>7}  {p99:>7}")
}

fn quantile(round_trips: &Histogram<u64>, quantile: f64) -> String {
    match round_trips.len() {
        0 => "-".to_owned(),
        _ => human::time(round_trips.value_at_quantile(quantile)),
    }
}

/// Where the datagrams went, both ways: how fast during a stretch, and how many from the start.
fn ledgers(stretch: Stretch<'_>, paint: &Paint) -> Vec<Line<'static>> {
    let head = format!(
        "{:<18}  {:>9}  {:>11}   {:>11}   {:>11}",
        "datagrams", "rate", "received", "forwarded", "dropped"
    );
    let counters = &stretch.to.balancer.counters;
    let mut lines = vec![Line::from(paint.head(head))];
    for (way, ledger, received) in [
        ("clients → backends", &counters.to_backend, received_from_clients(stretch)),
        ("backends → clients", &counters.to_client, received_from_backends(stretch)),
    ] {
        let rate = human::rate(received, stretch.length());
        let mut line = Line::raw(format!("{way}  {rate:>9}  "));
        line.extend(sum(ledger, paint));
        lines.push(line);
    }
    lines
}

fn received_from_clients(stretch: Stretch<'_>) -> u64 {
    stretch.datagrams(|counters| counters.to_backend.received)
}

fn received_from_backends(stretch: Stretch<'_>) -> u64 {
    stretch.datagrams(|counters| counters.to_client.received)
}

/// A ledger as the sum that it is.
fn sum(ledger: &Ledger, paint: &Paint) -> [Span<'static>; 3] {
    let received = ledger.received.datagrams;
    let forwarded = ledger.forwarded.datagrams;
    let dropped = ledger.dropped_total().datagrams;
    let queued = ledger.queued.datagrams;
    let sign = if received == forwarded + dropped + queued { "=" } else { "≠" };
    let dropped_text = format!("{:>11}", human::count(dropped));
    let dropped_text =
        if dropped == 0 { Span::raw(dropped_text) } else { paint.alarm(dropped_text) };
    let [received, forwarded] = [received, forwarded].map(human::count);
    let queued = if queued == 0 { String::new() } else { format!(" + {queued} queued") };
    let summands = format!("{received:>11} {sign} {forwarded:>11} + ");
    [Span::raw(summands), dropped_text, Span::raw(queued)]
}

/// The heads of the columns of [`line()`].
pub(super) fn line_head() -> String {
    columns(["time", "to backends", "to clients", "flows", "shares in %", "p50", "p99", "dropped"])
}

/// A stretch in one line, for readers that cannot redraw.
pub(super) fn line(second: u64, stretch: Stretch<'_>) -> String {
    let all = stretch.round_trips();
    let shares = stretch
        .round_trips_each()
        .map(|each| format!("{:.0}", 100.0 * human::fraction(each.len(), all.len())));
    let rate = |datagrams| human::rate(datagrams, stretch.length());
    columns([
        &format!("{second} s"),
        &rate(received_from_clients(stretch)),
        &rate(received_from_backends(stretch)),
        &human::count(stretch.to.balancer.flows_active),
        &shares.collect::<Vec<_>>().join(" "),
        &quantile(&all, 0.50),
        &quantile(&all, 0.99),
        &human::count(stretch.datagrams(dropped)),
    ])
}

fn columns([time, to_backends, to_clients, flows, shares, p50, p99, dropped]: [&str; 8]) -> String {
    format!(
        "{time:>4}  {to_backends:>11}  {to_clients:>10}  {flows:>5}  {shares:>11}  {p50:>7}  \
         {p99:>7}  {dropped:>7}\n"
    )
}

fn dropped(counters: &Counters) -> Traffic {
    counters.to_backend.dropped_total().plus(counters.to_client.dropped_total())
}

#[cfg(test)]
mod tests {
    use super::super::paint::written;
    use super::super::sample::tests::{start, two_seconds_later};
    use super::*;

    #[test]
    fn tables_are_aligned_and_add_up() {
        let (start, end) = (start(), two_seconds_later());
        let text = written(&tables(Stretch { from: &start, to: &end }, &Paint::plain()));
        let expected = "\
backend          weight  share                flows   answers      p50      p99
127.0.0.1:40001       1  ████████████ 75.0 %      6    375 /s   100 µs   100 µs
127.0.0.1:40002       1  ████         25.0 %      2    125 /s   1.0 ms   1.0 ms
all                                               8    500 /s   100 µs   1.0 ms

datagrams                rate     received     forwarded       dropped
clients → backends     502 /s        1,005 =       1,002 +           3
backends → clients     500 /s        1,000 =       1,000 +           0
";
        assert_eq!(text, expected);
    }

    #[test]
    fn tables_of_nothing_show_no_latencies() {
        let start = start();
        let text = written(&tables(Stretch { from: &start, to: &start }, &Paint::plain()));
        let all = text.lines().find(|line| line.starts_with("all")).unwrap();
        assert_eq!(all.split_whitespace().collect::<Vec<_>>(), ["all", "0", "0", "/s", "-", "-"]);
    }

    #[test]
    fn lines_stand_under_their_heads() {
        let (start, end) = (start(), two_seconds_later());
        let text = line_head() + &line(2, Stretch { from: &start, to: &end });
        let expected = "\
time  to backends  to clients  flows  shares in %      p50      p99  dropped
 2 s       502 /s      500 /s      8        75 25   100 µs   1.0 ms        3
";
        assert_eq!(text, expected);
    }
}
