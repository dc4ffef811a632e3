//! The report as text: tables that read well in a terminal and in Markdown.

use crate::peers::Peer;
use crate::report::{Costs, Figures, Report, Row};
use crate::workload::Headline;

/// Stands where there is no figure.
const NONE: &str = "-";

/// Stands before a rate at which the balancer still had time to spare.
const AT_LEAST: &str = "> ";

/// The whole report.
pub(crate) fn text(report: &Report) -> String {
    let tables = [headlines(report), details(report)].map(|lines| table(&lines));
    format!("{}\n{}\n", tables.join("\n"), conditions(report))
}

/// What the figures depend on, and how to read them.
pub(crate) fn conditions(report: &Report) -> String {
    let Report { machine, versions, rounds, seconds, crowd, .. } = report;
    let versions: String =
        versions.iter().map(|(peer, version)| format!(", {} {version}", peer.name())).collect();
    let share = match crowd {
        0 => String::new(),
        _ => format!("; balancers had 1/{} of a core", crowd + 1),
    };
    let spare = report
        .rows
        .iter()
        .any(|row| row.peers.iter().any(|column| row.has_time_to_spare(column.peer)));
    let bound = if spare { "; >: clients and backends were the limit" } else { "" };
    format!("{machine}{versions}; medians of {rounds} rounds of {seconds} s{share}{bound}")
}

/// The figure for which a workload exists, with its unit.
pub(crate) fn shown(row: &Row, peer: Peer) -> String {
    let Some(value) = row.figures(peer).and_then(|figures| row.headline.of(figures)) else {
        return NONE.to_owned();
    };
    match row.headline {
        Headline::Rate => {
            let bound = if row.has_time_to_spare(peer) { AT_LEAST } else { "" };
            format!("{bound}{}/s", thousands((value / 1_000.0).round() * 1_000.0))
        }
        Headline::Cpu => format!("{value:.1} µs"),
        Headline::Tail => format!("{} µs", thousands(value)),
    }
}

/// One line about one measurement.
pub(crate) fn brief(figures: &Figures) -> String {
    let [rate, cpu, busy, _, _, lost, p50, p99, _, memory, _] = cells(figures);
    format!(
        "{rate:>9}/s  {cpu:>6} µs CPU  busy {busy:>5}  lost {lost:>6}  p50 {p50:>6} µs  p99 {p99:>6} µs  {memory:>5} MB"
    )
}

/// What a headline is, in words.
fn caption(headline: Headline) -> &'static str {
    match headline {
        Headline::Rate => "rate",
        Headline::Cpu => "CPU time each",
        Headline::Tail => "p99",
    }
}

/// One line per workload: the figure for which it exists, and how Flowgate compares.
fn headlines(report: &Report) -> Vec<Vec<String>> {
    // Not every peer takes every workload.
    let mut peers = Vec::new();
    for column in report.rows.iter().flat_map(|row| &row.peers) {
        if !peers.contains(&column.peer) {
            peers.push(column.peer);
        }
    }
    let mut header = vec!["workload".to_owned(), "figure".to_owned()];
    header.extend(peers.iter().map(|peer| peer.name().to_owned()));
    header.push("Flowgate is".to_owned());

    let mut lines = vec![header];
    for row in &report.rows {
        let mut line = vec![row.title.clone(), caption(row.headline).to_owned()];
        line.extend(peers.iter().map(|&peer| shown(row, peer)));
        let ratio = row.relative_to_nginx(Peer::Flowgate);
        line.push(ratio.map_or(NONE.to_owned(), |ratio| format!("{ratio:.2} x nginx")));
        lines.push(line);
    }
    lines
}

/// One line per workload and peer: everything that was measured.
fn details(report: &Report) -> Vec<Vec<String>> {
    let header = [
        "workload",
        "peer",
        "rate /s",
        "CPU µs",
        "busy",
        "waited",
        "per core /s",
        "lost",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "memory MB",
        "peak MB",
    ];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    for row in &report.rows {
        for column in &row.peers {
            let mut line = vec![row.title.clone(), column.peer.name().to_owned()];
            line.extend(cells(&column.median));
            lines.push(line);
        }
    }
    lines
}

/// Rate, CPU time, busy, waited, rate per core, lost, p50, p99, p99.9, memory and peak.
fn cells(figures: &Figures) -> [String; 11] {
    let costs =
        |show: &dyn Fn(&Costs) -> String| figures.costs.as_ref().map_or(NONE.to_owned(), show);
    [
        thousands(figures.rate),
        costs(&|costs| format!("{:.2}", costs.cpu_ns / 1_000.0)),
        costs(&|costs| format!("{:.0} %", costs.busy * 100.0)),
        costs(&|costs| format!("{:.0} %", costs.waited * 100.0)),
        costs(&|costs| thousands(costs.per_core())),
        format!("{:.2} %", figures.lost * 100.0),
        thousands(figures.p50),
        thousands(figures.p99),
        thousands(figures.p999),
        costs(&|costs| megabytes(costs.resident)),
        costs(&|costs| megabytes(costs.peak)),
    ]
}

/// A Markdown table with aligned columns; the first line is the header, and numbers stand on the right.
fn table(lines: &[Vec<String>]) -> String {
    let Some(header) = lines.first() else {
        return String::new();
    };
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let is_text = |column: usize| column < 2;

    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            text += &if is_text(column) {
                format!("| {cell:<width$} ")
            } else {
                format!("| {cell:>width$} ")
            };
        }
        text += "|\n";
        if index == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width);
                text +=
                    &if is_text(column) { format!("|-{dashes}-") } else { format!("|-{dashes}:") };
            }
            text += "|\n";
        }
    }
    text
}

/// A whole number with separators: 1,450,000.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_separators() {
        assert_eq!(thousands(999.4), "999");
        assert_eq!(thousands(1_450_000.0), "1,450,000");
        assert_eq!(thousands(20_000.0), "20,000");
    }

    #[test]
    fn columns_are_aligned() {
        let lines =
            [["a", "b", "c"], ["long", "x", "7"]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(table(&lines), "| a    | b | c |\n|------|---|--:|\n| long | x | 7 |\n");
    }
}
