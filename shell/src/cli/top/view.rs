//! What is drawn: a title, the traffic, a graph, and below it as many lines about listeners and
//! backends as there is room for.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, RenderDirection, Sparkline};

use super::cell::{Cell, fit, row};
use super::options::{Options, Screen, Sort};
use super::stretch::{Stretch, is_on_purpose, sum};
use crate::admin::escape::escaped;
use crate::admin::status::{BackendState, BackendStatus, ClusterStatus, ListenerStatus};
use crate::cli::columns::Align;
use crate::cli::{human, status};

const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const HEAD: Style = Style::new().add_modifier(Modifier::DIM);
const PLAIN: Style = Style::new();
const GRAPH: Style = Style::new().fg(Color::Cyan);
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);

/// The directions, where there is room for words.
const TO: [&str; 2] = ["to backends", "to clients"];

/// With fewer rows than these there is no graph.
const ROWS_FOR_GRAPH: u16 = 16;

/// All that is drawn.
pub(super) struct View<'a> {
    pub(super) stretch: Stretch<'a>,
    /// Datagrams a second, both ways, the latest first.
    pub(super) history: &'a VecDeque<u64>,
    /// Why there is no news.
    pub(super) trouble: Option<&'a str>,
    /// What is to be shown.
    pub(super) options: &'a Options,
    /// How many lines are above the window.
    pub(super) scroll: usize,
}

/// What became of it.
pub(super) struct Drawn {
    /// How many lines can be above the window.
    pub(super) last_line: usize,
    /// How many lines the window has.
    pub(super) page: usize,
}

/// Draws a frame.
pub(super) fn render(frame: &mut Frame<'_>, view: &View<'_>) -> Drawn {
    let area = frame.area();
    let graph = if area.height >= ROWS_FOR_GRAPH { 4 } else { 0 };
    let [title, traffic, graph, _, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(graph),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);

    let stretch = &view.stretch;
    frame.render_widget(title_line(stretch), title);
    frame.render_widget(traffic_line(stretch, traffic.width), traffic);
    render_graph(frame, view.history, graph);

    let width = usize::from(body.width);
    let lines = match view.options.screen {
        Screen::Figures => figures(stretch, view.options, width),
        Screen::Events => event_lines(stretch, width),
        Screen::Help => HELP.iter().map(|line| Line::raw(*line)).collect(),
    };
    let (all, page) = (lines.len(), usize::from(body.height));
    let last_line = all.saturating_sub(page);
    let scroll = view.scroll.min(last_line);
    let window: Vec<_> = lines.into_iter().skip(scroll).take(page).collect();
    frame.render_widget(Paragraph::new(window), body);
    frame.render_widget(foot_line(view, scroll, page, all), foot);
    Drawn { last_line, page }
}

/// What the keys do.
const HELP: &[&str] = &[
    "KEY         ACTION",
    "q           quits, as Ctrl-C does",
    "s           sorts backends: trouble first, by rate, by flows, as configured",
    "/           filters backends by address, name, cluster",
    "            or state; Enter keeps the filter, Esc clears it",
    "e           shows recent events: changes of backends, reloads",
    "? h         shows this",
    "Esc         goes back, or quits",
    "↑ ↓ k j     scroll by a line, Space and Page ↑ ↓ by a page, g and G to the ends",
];

/// All listeners, and the backends that are to be shown.
fn figures(stretch: &Stretch<'_>, options: &Options, width: usize) -> Vec<Line<'static>> {
    let mut lines = listener_lines(stretch, width);
    lines.extend([Line::default(), backend_heads(width)]);
    for cluster in options.clusters(&stretch.now.clusters) {
        let shown = options.backends(stretch, cluster);
        if options.filter.is_empty() || !shown.is_empty() {
            lines.extend(cluster_lines(stretch, cluster, &shown, width));
        }
    }
    lines
}

/// What happened last, the latest first.
fn event_lines(stretch: &Stretch<'_>, width: usize) -> Vec<Line<'static>> {
    let now = stretch.now.process.now;
    let mut lines = vec![Line::styled("AGO         EVENT      WHAT", HEAD)];
    for event in &stretch.now.events {
        let text = [&event.subject, &event.text].map(|part| escaped(part));
        let text = text.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>();
        let (ago, kind) = (human::seconds(now - event.at), escaped(&event.kind));
        let line = format!("{ago:<11} {kind:<10} {}", text.join(": "));
        lines.push(Line::raw(fit(&line, width, Align::Left).trim_end().to_owned()));
    }
    if lines.len() == 1 {
        lines.push(Line::raw("No events yet."));
    }
    lines
}

fn title_line(stretch: &Stretch<'_>) -> Line<'static> {
    let now = stretch.now;
    let flows = sum(now.listeners.iter().map(|listener| listener.flows_active));
    Line::from(vec![
        Span::styled(format!("Flowgate {}", escaped(&now.version)), TITLE),
        Span::raw(format!("   up {}", status::uptime(now))),
        Span::raw(format!("   {} flows", human::count(flows))),
    ])
}

fn traffic_line(stretch: &Stretch<'_>, width: u16) -> Line<'static> {
    let [to_backends, to_clients] = if width < 64 { ["→", "←"] } else { TO };
    let [sent, replies] = stretch.forwarded();
    let is_well = stretch.trouble() == 0;
    Line::from(vec![
        Span::raw(format!("{to_backends} {}", stretch.rate(sent))),
        Span::raw(format!("   {to_clients} {}   ", stretch.rate(replies))),
        Span::styled(format!("dropped {}", stretch.rate(stretch.dropped())), alarm_unless(is_well)),
    ])
}

/// The rates of the last seconds, the latest at the right edge.
fn render_graph(frame: &mut Frame<'_>, history: &VecDeque<u64>, area: Rect) {
    let shown = || history.iter().take(usize::from(area.width));
    let most = shown().copied().max().unwrap_or(0);
    let most = human::rate(most, std::time::Duration::from_secs(1));
    let head = format!("datagrams both ways, last {} s, peak {most}", shown().count());
    let [line, bars] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::styled(head, HEAD), line);
    let graph = Sparkline::default()
        .data(shown().copied().collect::<Vec<_>>())
        .direction(RenderDirection::RightToLeft)
        .style(GRAPH);
    frame.render_widget(graph, bars);
}

fn listener_lines(stretch: &Stretch<'_>, width: usize) -> Vec<Line<'static>> {
    let heads = ["SENT/S", "REPLIES/S", "DROPS/S", "ACTIVE", "LIMIT"];
    let mut lines = vec![row(width, (&["LISTENER"], HEAD), listener_cells(heads.map(plain), HEAD))];
    for listener in &stretch.now.listeners {
        let drops = stretch.drops_of(listener);
        let dropped = sum(drops.iter().map(|(_, dropped)| *dropped));
        let is_well = drops.iter().all(|(reason, _)| is_on_purpose(reason));
        let grown = |figure: fn(&ListenerStatus) -> u64| {
            plain(stretch.rate(stretch.of_listener(listener, figure)))
        };
        let cells = [
            grown(|listener| listener.to_backend.forwarded.datagrams),
            grown(|listener| listener.to_client.forwarded.datagrams),
            (stretch.rate(dropped), alarm_unless(is_well)),
            plain(status::flows_of(listener, listener.flows_active)),
            plain(status::flows_of(listener, listener.flows_max)),
        ];
        let (name, address) = (escaped(&listener.name), escaped(&listener.address));
        let both = if name == address { name.clone() } else { format!("{name} {address}") };
        lines.push(row(width, (&[&both, &name], PLAIN), listener_cells(cells, PLAIN)));
        if !drops.is_empty() {
            let reasons = drops
                .iter()
                .map(|&(reason, dropped)| format!("{} {}", escaped(reason), stretch.rate(dropped)));
            let text = format!("  dropped: {}", reasons.collect::<Vec<_>>().join(", "));
            lines.push(row(width, (&[&text], alarm_unless(is_well)), []));
        }
    }
    lines
}

fn listener_cells(texts: [(String, Style); 5], otherwise: Style) -> impl Iterator<Item = Cell> {
    const SIZES: [(usize, usize); 5] = [(11, 24), (10, 40), (8, 50), (9, 32), (9, 70)];
    cells(texts, otherwise, SIZES)
}

fn backend_heads(width: usize) -> Line<'static> {
    let heads = ["STATE", "", "SHARE", "FLOWS", "SENT/S", "REPLIES/S"].map(plain);
    row(width, (&["BACKEND"], HEAD), backend_cells(width, heads, HEAD))
}

fn cluster_lines(
    stretch: &Stretch<'_>,
    cluster: &ClusterStatus,
    shown: &[&BackendStatus],
    width: usize,
) -> Vec<Line<'static>> {
    let serve = |backend: &&BackendStatus| {
        matches!(backend.state, BackendState::Up | BackendState::Unchecked)
    };
    let up = cluster.backends.iter().filter(serve).count();
    let all = cluster.backends.len();
    let name = escaped(&cluster.name);
    let how = match cluster.mode.as_str() {
        "one-way" => format!("one-way, {}", escaped(&cluster.balance)),
        "fan-out" => "fan-out, a copy to each".to_owned(),
        _ => escaped(&cluster.balance),
    };
    let label = format!("{name}  {how}, {up} of {all} in service");
    let is_well = cluster.backends.iter().all(|backend| !backend.state.is_trouble());
    let title = if is_well { TITLE } else { ALARM };
    let mut lines = vec![row(width, (&[&label], title), [])];

    let sent = |backend| stretch.of_backend(cluster, backend, |backend| backend.datagrams_to);
    let total = sum(cluster.backends.iter().map(sent));
    let most = cluster.backends.iter().map(sent).max().unwrap_or(0);
    for &backend in shown {
        let received = stretch.of_backend(cluster, backend, |backend| backend.datagrams_from);
        let (sent, color) = (sent(backend), state_style(backend.state));
        let bar = human::bar(human::fraction(sent, most), bar_width(width));
        let cells = [
            (backend.state.as_str().to_owned(), color),
            (bar, color),
            plain(if total == 0 { "-".to_owned() } else { human::percent(sent, total) }),
            plain(human::count(backend.flows_active)),
            plain(stretch.rate(sent)),
            plain(stretch.rate(received)),
        ];
        let labels = backend_labels(backend);
        let labels = labels.each_ref().map(String::as_str);
        lines.push(row(width, (&labels, PLAIN), backend_cells(width, cells, PLAIN)));
        if backend.state.is_trouble()
            && let Some(reason) = &backend.reason
        {
            let left = backend.until_seconds.map(|left| format!(", {} left", human::seconds(left)));
            let since =
                backend.since_seconds.map(|since| format!(" for {}", human::seconds(since)));
            let (since, left) = (since.unwrap_or_default(), left.unwrap_or_default());
            let text = format!("    {}{since}{left}: {}", backend.state.as_str(), escaped(reason));
            lines.push(row(width, (&[&text], ALARM), []));
        }
        let missed = stretch.of_backend(cluster, backend, |backend| backend.datagrams_dropped);
        if missed > 0 {
            let text = format!("    not sent: {}", stretch.rate(missed));
            lines.push(row(width, (&[&text], ALARM), []));
        }
    }
    lines
}

/// What to call it, from the longest to the shortest.
fn backend_labels(backend: &BackendStatus) -> [String; 3] {
    let backup = if backend.backup { " backup" } else { "" };
    [
        format!("  {}{backup}", status::backend_name(backend)),
        format!("  {}{backup}", backend.address),
        format!("  {}", backend.address),
    ]
}

fn backend_cells(
    width: usize,
    texts: [(String, Style); 6],
    otherwise: Style,
) -> impl Iterator<Item = Cell> {
    let bar = (bar_width(width), 74);
    let sizes = [(9, 30), bar, (7, 60), (8, 38), (9, 46), (9, 54)];
    // The states and the bars begin where their columns do.
    cells(texts, otherwise, sizes).enumerate().map(|(index, cell)| Cell {
        align: if index < 2 { Align::Left } else { Align::Right },
        ..cell
    })
}

/// Wide terminals have longer bars.
const fn bar_width(width: usize) -> usize {
    if width < 100 { 8 } else { 20 }
}

/// Cells of given widths, each shown from a width of the row on.
fn cells<const N: usize>(
    texts: [(String, Style); N],
    otherwise: Style,
    sizes: [(usize, usize); N],
) -> impl Iterator<Item = Cell> {
    texts.into_iter().zip(sizes).map(move |((text, style), (width, from))| {
        let style = if style == PLAIN { otherwise } else { style };
        Cell { text, align: Align::Right, width, from, style }
    })
}

fn plain(text: impl Into<String>) -> (String, Style) {
    (text.into(), PLAIN)
}

const fn state_style(state: BackendState) -> Style {
    match state {
        BackendState::Up => Style::new().fg(Color::Green),
        BackendState::Unchecked => PLAIN,
        BackendState::Down | BackendState::Ejected => ALARM,
        BackendState::Draining => Style::new().fg(Color::Yellow),
    }
}

const fn alarm_unless(all_is_well: bool) -> Style {
    if all_is_well { PLAIN } else { ALARM }
}

fn foot_line(view: &View<'_>, scroll: usize, page: usize, all: usize) -> Line<'static> {
    let View { trouble, options, .. } = view;
    if options.is_typing {
        return Line::styled(format!("find: {}█   Enter keeps, Esc ends", options.filter), TITLE);
    }
    if let Some(trouble) = trouble {
        return Line::styled(format!("q quits   no event: {trouble}"), ALARM);
    }
    let mut text = "q quits   ? help".to_owned();
    if options.sort != Sort::Trouble {
        text += &format!("   by {}", options.sort.as_str());
    }
    if !options.filter.is_empty() {
        text += &format!("   find {}", escaped(&options.filter));
    }
    if all > page {
        let (first, last) = (scroll + 1, (scroll + page).min(all));
        text += &format!("   ↑ ↓   lines {first} to {last} of {all}");
    }
    Line::styled(text, HEAD)
}
