use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyEvent;

use super::*;
use crate::admin::status::{ClusterStatus, StatusDocument, TrafficDoc};
use crate::cli::status::tests::document;
use flowgate_core::Instant;

/// The same, two seconds later.
fn two_seconds_later() -> StatusDocument {
    let mut status = document();
    status.uptime_seconds += 2.0;
    status.counters.datagrams_forwarded.to_backend += 96_420;
    status.counters.datagrams_forwarded.to_client += 95_000;
    status.counters.datagrams_dropped.to_backend += 40;
    let dns = &mut status.listeners[0];
    dns.to_backend.forwarded.datagrams += 96_420;
    dns.to_client.forwarded.datagrams += 95_000;
    dns.to_backend.dropped.get_mut("max_flows").unwrap().datagrams += 30;
    dns.to_backend.dropped.insert("no_backend".into(), TrafficDoc { datagrams: 10, bytes: 90 });
    status.listeners[1].socket_drops += 3;
    for (backend, (to, from)) in
        status.clusters[0].backends.iter_mut().zip([(72_300, 71_000), (24_120, 24_000), (0, 0)])
    {
        backend.datagrams_to += to;
        backend.datagrams_from += from;
    }
    status
}

fn watch() -> Watch {
    let start = Instant::ORIGIN;
    let mut watch = Watch::new(document(), start);
    watch.add(two_seconds_later(), start + Duration::from_secs(2));
    watch
}

fn top() -> Top {
    Top {
        clock: Clock::start(),
        watch: watch(),
        trouble: None,
        options: Options::default(),
        scroll: 0,
        last_line: 0,
        page: 1,
    }
}

/// What a terminal of that size shows, without the spaces at the ends of lines.
fn drawn(width: u16, height: u16, view: &view::View<'_>) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let draw = |frame: &mut ratatui::Frame<'_>| {
        view::render(frame, view);
    };
    terminal.draw(draw).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width)).map(|row| {
        row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
    });
    rows.collect::<Vec<_>>().join("\n") + "\n"
}

#[track_caller]
fn assert_drawn(width: u16, height: u16, expected: &str) {
    let history = (0..200).map(|second: u64| 95_710 * (second % 40) / 40).collect();
    let text = drawn(width, height, &view::View { history: &history, ..top().view() });
    assert_eq!(text, expected.trim_start_matches('\n'), "\n{text}");
}

#[test]
fn a_terminal_of_80_columns_and_24_rows_shows_everything() {
    assert_drawn(
        80,
        24,
        r"
Flowgate 0.1.0   up 3d 3h   1,234 flows
to backends 48.2 k/s   to clients 47.5 k/s   dropped 22 /s
datagrams both ways, last 80 s, peak 93.3 k/s
█▇▆▆▅▄▄▃▃▂▁▁                            █▇▆▆▅▄▄▃▃▂▁▁
█████████████▇▇▆▆▅▄▄▃▃▂▁▁               █████████████▇▇▆▆▅▄▄▃▃▂▁▁
██████████████████████████▇▇▆▆▅▄▄▃▃▂▁▁  ██████████████████████████▇▇▆▆▅▄▄▃▃▂▁▁

LISTENER                          SENT/S  REPLIES/S  DROPS/S    ACTIVE     LIMIT
dns 0.0.0.0:53                  48.2 k/s   47.5 k/s    20 /s     1,234    65,536
  dropped: max_flows 15 /s, no_backend 5 /s
o\u{1b}[2Jd\nd [::]:5060            0 /s       0 /s     2 /s         0    65,536
  dropped: by the kernel 2 /s

BACKEND                  STATE                SHARE    FLOWS    SENT/S REPLIES/S
resolvers  rendezvous, 1 of 3 in service
  [2001:db8::3]:53       down                 0.0 %      198      0 /s      0 /s
  10.0.0.2:53            draining  ██▋       25.0 %      600  12.1 k/s  12.0 k/s
  10.0.0.1:53            up        ████████  75.0 %    1,200  36.1 k/s  35.5 k/s
e\u{1b}]0;mpty\u{7}  maglev, 0 of 0 in service




q quits   ? help
",
    );
}

#[test]
fn a_backend_that_misses_what_it_was_to_get_is_shown() {
    let mut later = two_seconds_later();
    later.clusters[0].backends[1].datagrams_dropped += 24;
    let mut watch = Watch::new(document(), Instant::ORIGIN);
    watch.add(later, Instant::ORIGIN + Duration::from_secs(2));
    let top = Top {
        clock: Clock::start(),
        watch,
        trouble: None,
        options: Options::default(),
        scroll: 0,
        last_line: 0,
        page: 1,
    };
    let text = drawn(80, 30, &top.view());
    assert!(text.contains("\n    not sent: 12 /s"), "{text}");
}

#[test]
fn a_wide_and_tall_terminal_has_longer_bars() {
    assert_drawn(
        110,
        30,
        r"
Flowgate 0.1.0   up 3d 3h   1,234 flows
to backends 48.2 k/s   to clients 47.5 k/s   dropped 22 /s
datagrams both ways, last 110 s, peak 93.3 k/s
▁▁                            █▇▆▆▅▄▄▃▃▂▁▁                            █▇▆▆▅▄▄▃▃▂▁▁
███▇▇▆▆▅▄▄▃▃▂▁▁               █████████████▇▇▆▆▅▄▄▃▃▂▁▁               █████████████▇▇▆▆▅▄▄▃▃▂▁▁
████████████████▇▇▆▆▅▄▄▃▃▂▁▁  ██████████████████████████▇▇▆▆▅▄▄▃▃▂▁▁  ██████████████████████████▇▇▆▆▅▄▄▃▃▂▁▁

LISTENER                                                        SENT/S  REPLIES/S  DROPS/S    ACTIVE     LIMIT
dns 0.0.0.0:53                                                48.2 k/s   47.5 k/s    20 /s     1,234    65,536
  dropped: max_flows 15 /s, no_backend 5 /s
o\u{1b}[2Jd\nd [::]:5060                                          0 /s       0 /s     2 /s         0    65,536
  dropped: by the kernel 2 /s

BACKEND                                    STATE                            SHARE    FLOWS    SENT/S REPLIES/S
resolvers  rendezvous, 1 of 3 in service
  [2001:db8::3]:53 backup                  down                             0.0 %      198      0 /s      0 /s
  10.0.0.2:53 (re\u{1b}solver.internal)    draining  ██████▋               25.0 %      600  12.1 k/s  12.0 k/s
  10.0.0.1:53                              up        ████████████████████  75.0 %    1,200  36.1 k/s  35.5 k/s
e\u{1b}]0;mpty\u{7}  maglev, 0 of 0 in service










q quits   ? help
",
    );
}

#[test]
fn a_narrow_and_low_terminal_shows_what_matters_most() {
    assert_drawn(
        44,
        12,
        r"
Flowgate 0.1.0   up 3d 3h   1,234 flows
→ 48.2 k/s   ← 47.5 k/s   dropped 22 /s

LISTENER         SENT/S  REPLIES/S    ACTIVE
dns            48.2 k/s   47.5 k/s     1,234
  dropped: max_flows 15 /s, no_backend 5 /s
o\u{1…Jd\nd        0 /s       0 /s         0
  dropped: by the kernel 2 /s

BACKEND                   STATE        FLOWS
resolvers  rendezvous, 1 of 3 in service
q quits   ? help   ↑ ↓   lines 1 to 8 of 12
",
    );
}

#[test]
fn no_size_is_too_small() {
    let mut top = top();
    top.trouble = Some("no answer".into());
    for width in 1..50 {
        for height in 1..20 {
            drawn(width, height, &top.view());
        }
    }
}

#[test]
fn names_are_shown_escaped() {
    let text = drawn(200, 40, &top().view());
    for name in [r"o\u{1b}[2Jd\nd", r"e\u{1b}]0;mpty\u{7}", r"re\u{1b}solver.internal"] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn trouble_is_told_and_the_last_figures_stay() {
    let mut top = top();
    top.trouble = Some("no flowgate is listening".into());
    let text = drawn(80, 24, &top.view());
    assert!(text.contains("no event: no flowgate is listening"), "{text}");
    assert!(text.contains("48.2 k/s"), "{text}");
}

#[test]
fn a_process_that_started_anew_has_no_rates_yet() {
    let mut watch = watch();
    let restarted = StatusDocument { uptime_seconds: 0.2, ..document() };
    watch.add(restarted, Instant::ORIGIN + Duration::from_secs(3));
    assert!(watch.history().is_empty());
    let text = drawn(80, 24, &Top { watch, ..top() }.view());
    assert!(text.contains("to backends -   to clients -   dropped -"), "{text}");
}

#[test]
fn keys_scroll_and_quit() {
    let mut top = top();
    (top.last_line, top.page) = (7, 5);
    let mut press = |code| {
        let next = top.handle(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        (next, top.scroll)
    };
    let go_on = |scroll| (Next::GoOn, scroll);
    assert_eq!(press(KeyCode::Down), go_on(1));
    assert_eq!(press(KeyCode::PageDown), go_on(6));
    assert_eq!(press(KeyCode::PageDown), go_on(7));
    assert_eq!(press(KeyCode::Up), go_on(6));
    assert_eq!(press(KeyCode::PageUp), go_on(1));
    assert_eq!(press(KeyCode::End), go_on(7));
    assert_eq!(press(KeyCode::Home), go_on(0));
    assert_eq!(press(KeyCode::Char('c')), go_on(0));
    assert_eq!(press(KeyCode::Char('q')), (Next::Quit, 0));
    assert_eq!(press(KeyCode::Esc), (Next::Quit, 0));
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(top.handle(&Event::Key(control_c)), Next::Quit);
}

/// A terminal after some keys were pressed.
fn after(keys: &[KeyCode], change: impl FnOnce(&mut StatusDocument)) -> String {
    let mut later = two_seconds_later();
    change(&mut later);
    let mut watch = Watch::new(document(), Instant::ORIGIN);
    watch.add(later, Instant::ORIGIN + Duration::from_secs(2));
    let mut top = Top { watch, ..top() };
    for &key in keys {
        assert_eq!(top.handle(&Event::Key(KeyEvent::new(key, KeyModifiers::NONE))), Next::GoOn);
    }
    drawn(90, 30, &top.view())
}

fn index(text: &str, part: &str) -> usize {
    text.find(part).unwrap_or_else(|| panic!("{part} in {text}"))
}

#[test]
fn backends_are_sorted_and_filtered() {
    // Trouble comes first, unless something else is asked for.
    let text = after(&[], |_| ());
    assert!(index(&text, "[2001:db8::3]:53") < index(&text, "10.0.0.2:53"), "{text}");
    assert!(index(&text, "10.0.0.2:53") < index(&text, "10.0.0.1:53"), "{text}");
    for (times, order) in [(1, "by sent"), (2, "by flows"), (3, "by configuration")] {
        let text = after(&vec![KeyCode::Char('s'); times], |_| ());
        assert!(index(&text, "10.0.0.1:53") < index(&text, "10.0.0.2:53"), "{text}");
        assert!(index(&text, "10.0.0.2:53") < index(&text, "[2001:db8::3]:53"), "{text}");
        assert!(text.contains(order), "{text}");
    }

    let typed = "/DOWN".chars().map(KeyCode::Char).collect::<Vec<_>>();
    let text = after(&typed, |_| ());
    assert!(text.contains("[2001:db8::3]:53") && !text.contains("10.0.0.1:53"), "{text}");
    assert!(text.contains("find: down█"), "{text}");
    let text = after(&[&typed[..], &[KeyCode::Enter]].concat(), |_| ());
    assert!(text.contains("q quits   ? help   find down"), "{text}");
    let text = after(&[&typed[..], &[KeyCode::Esc]].concat(), |_| ());
    assert!(text.contains("10.0.0.1:53"), "{text}");
}

#[test]
fn a_cluster_with_trouble_comes_before_those_without() {
    let backend = document().clusters[0].backends[0].clone();
    let healthy = ClusterStatus {
        name: "healthy".into(),
        balance: "random".into(),
        backends: vec![backend],
        ..ClusterStatus::default()
    };
    let add = |document: &mut StatusDocument| document.clusters.insert(0, healthy.clone());
    let text = after(&[], add);
    assert!(index(&text, "resolvers  ") < index(&text, "healthy  "), "{text}");
    let text = after(&[KeyCode::Char('s')], add);
    assert!(index(&text, "healthy  ") < index(&text, "resolvers  "), "{text}");
}

#[test]
fn what_goes_one_way_has_no_flows_and_is_called_so() {
    let text = after(&[], |document| {
        document.listeners[0].flows_max = 0;
        document.clusters[0].mode = "one-way".into();
    });
    assert!(text.contains("resolvers  one-way, rendezvous, 1 of 3 in service"), "{text}");
    let line = text.lines().find(|line| line.starts_with("dns ")).expect("a line");
    assert!(line.split_whitespace().rev().take(2).all(|cell| cell == "-"), "{text}");
}

#[test]
fn what_clients_are_refused_on_purpose_is_no_trouble() {
    let trouble = |reasons: &[&str]| {
        let mut later = document();
        for reason in reasons {
            let dropped = TrafficDoc { datagrams: 10, bytes: 90 };
            later.listeners[0].to_backend.dropped.insert((*reason).to_owned(), dropped);
        }
        let mut watch = Watch::new(document(), Instant::ORIGIN);
        watch.add(later, Instant::ORIGIN + Duration::from_secs(2));
        watch.stretch().trouble()
    };
    assert_eq!(trouble(&["denied", "source_flows", "not_first"]), 0);
    assert_eq!(trouble(&["denied", "no_backend"]), 10);
}

#[test]
fn events_and_help_are_shown_and_left_again() {
    let event = crate::admin::status::EventDoc {
        at: 1_000.0,
        kind: "ejected".into(),
        subject: "resolvers/10.0.0.1:53".into(),
        text: "no \x1banswer; for 15s".into(),
    };
    let happened = |document: &mut StatusDocument| {
        (document.events, document.process.now) = (vec![event], 1_007.0);
    };
    let text = after(&[KeyCode::Char('e')], happened);
    let line = r"7s          ejected    resolvers/10.0.0.1:53: no \u{1b}answer; for 15s";
    assert!(text.contains(line), "{text}");
    let text = after(&[KeyCode::Char('e')], |_| ());
    assert!(text.contains("No events yet."), "{text}");
    let text = after(&[KeyCode::Char('?')], |_| ());
    assert!(text.contains("q           quits"), "{text}");
    let text = after(&[KeyCode::Char('?'), KeyCode::Esc], |_| ());
    assert!(text.contains("10.0.0.1:53"), "{text}");
}

#[test]
fn who_is_out_of_service_says_why() {
    let text = after(&[], |document| {
        let backend = &mut document.clusters[0].backends[2];
        backend.reason = Some("the last probe timed out".into());
        backend.since_seconds = Some(192.0);
    });
    assert!(text.contains("    down for 3m 12s: the last probe timed out"), "{text}");
}
