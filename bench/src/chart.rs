//! The chart: one panel per workload, one bar per peer.
//!
//! Each panel has a scale of its own, since bulk traffic would dwarf everything else. The colours follow the reader's
//! choice of a dark or a light page; the card behind them keeps them readable where that choice is not known.

use std::fmt::Write;

use crate::peers::Peer;
use crate::report::{Report, Row};
use crate::table::{conditions, shown};
use crate::workload::Headline;

const WIDTH: usize = 940;
const MARGIN: usize = 24;
const COLUMNS: usize = 2;
const GAP: usize = 36;
const PANEL: usize = (WIDTH - 2 * MARGIN - GAP * (COLUMNS - 1)) / COLUMNS;

/// Where things are in a panel.
const TITLE: usize = 18;
const FIRST_BAR: usize = 32;
const BAR: usize = 20;
const STEP: usize = 27;
const LABELS: usize = 76;
/// The longest bar leaves this much room for its value.
const VALUES: usize = 190;

/// Below the panels: what was measured, where.
const FOOTER: usize = 34;

/// Light by default, dark where the reader prefers it.
const STYLE: &str = "
  text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; font-size: 13px; fill: #1f2328 }
  .title { font-size: 14px; font-weight: 600 }
  .quiet { fill: #59636e }
  .strong { font-weight: 600 }
  .plain { font-weight: 400 }
  .small { font-size: 11.5px }
  .right { text-anchor: end }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .bar { fill: #afb8c1 }
  .flowgate { fill: #0b7285 }
  .relay { fill: none; stroke: #818b98; stroke-dasharray: 3 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .quiet { fill: #9198a1 }
    .card { fill: #0d1117; stroke: #3d444d }
    .bar { fill: #565e69 }
    .flowgate { fill: #22b8cf }
    .relay { stroke: #7d8590 }
  }";

/// Draws the report.
pub(crate) fn svg(report: &Report) -> String {
    let bars = report.rows.iter().map(|row| bars(row).len()).max().unwrap_or(0);
    let height = FIRST_BAR + bars * STEP + GAP;
    let lines = report.rows.len().div_ceil(COLUMNS);

    let mut panels = String::new();
    for (index, row) in report.rows.iter().enumerate() {
        let (x, y) = (MARGIN + index % COLUMNS * (PANEL + GAP), MARGIN + index / COLUMNS * height);
        let _ = write!(panels, "\n<g transform=\"translate({x} {y})\">{}\n</g>", panel(row));
    }
    let total = MARGIN + lines * height + FOOTER;
    let (card_width, card_height) = (WIDTH - 1, total - 1);
    let (note, note_y) = (escape(&conditions(report)), total - MARGIN);
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}" role="img">
<title>Flowgate side by side with its peers</title>
<style>{STYLE}
</style>
<rect class="card" x="0.5" y="0.5" width="{card_width}" height="{card_height}" rx="8"/>{panels}
<text class="quiet small" x="{MARGIN}" y="{note_y}">{note}</text>
</svg>
"#
    )
}

/// One workload.
fn panel(row: &Row) -> String {
    let bars = bars(row);
    let longest = bars.iter().map(|&(_, value)| value).fold(f64::MIN_POSITIVE, f64::max);
    let (title, direction) = (escape(&row.title), direction(row.headline));
    let mut text = format!(
        r#"
<text class="title" y="{TITLE}">{title}</text>
<text class="quiet small right" x="{PANEL}" y="{TITLE}">{direction}</text>"#
    );
    for (index, &(peer, value)) in bars.iter().enumerate() {
        let y = FIRST_BAR + index * STEP;
        let length = (value / longest * (PANEL - LABELS - VALUES) as f64).max(1.0);
        let middle = y + BAR / 2 + 5;
        let behind = LABELS as f64 + length + 8.0;
        let emphasis = if peer == Peer::Flowgate { "strong" } else { "quiet" };
        let (name, class) = (peer.name(), class(peer));
        let (shown, ratio) = (escape(&shown(row, peer)), ratio(row, peer));
        let _ = write!(
            text,
            r#"
<text class="{emphasis}" y="{middle}">{name}</text>
<rect class="{class}" x="{LABELS}" y="{y}" width="{length:.1}" height="{BAR}" rx="3"/>
<text class="{emphasis}" x="{behind:.1}" y="{middle}">{shown}{ratio}</text>"#
        );
    }
    text
}

/// The peers of a panel with their values. Without a balancer there is nothing to compare.
fn bars(row: &Row) -> Vec<(Peer, f64)> {
    let balancers = row.peers.iter().filter(|column| column.peer != Peer::Direct);
    balancers.filter_map(|column| Some((column.peer, row.headline.of(&column.median)?))).collect()
}

fn class(peer: Peer) -> &'static str {
    match peer {
        Peer::Flowgate => "flowgate",
        Peer::Relay | Peer::Pool | Peer::Ids => "relay",
        Peer::Nginx
        | Peer::Envoy
        | Peer::Traefik
        | Peer::Dnsdist
        | Peer::Portable
        | Peer::Scraped
        | Peer::Traced
        | Peer::Untraced
        | Peer::Recorded
        | Peer::Direct => "bar",
    }
}

/// How Flowgate compares, behind its own bar.
fn ratio(row: &Row, peer: Peer) -> String {
    let ratio = row.relative_to_nginx(peer).filter(|_| peer == Peer::Flowgate);
    ratio
        .map(|ratio| format!(r#"<tspan class="quiet plain" dx="8">{ratio:.2} × nginx</tspan>"#))
        .unwrap_or_default()
}

fn direction(headline: Headline) -> &'static str {
    match headline {
        Headline::Rate => "per second, more is better",
        Headline::Cpu => "CPU time each, less is better",
        Headline::Tail => "99th percentile, less is better",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
