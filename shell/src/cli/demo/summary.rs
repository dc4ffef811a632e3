//! The last word of the demo: what came of it, and what to do next.

use flowgate_core::{CloseReason, Direction, DropReason};
use ratatui::text::Line;

use super::human;
use super::paint::{Paint, written};
use super::sample::{Sample, Stretch};
use super::{NAP, table};

/// A configuration to start from: with it, `dig` gets answers.
const FIRST_CONFIGURATION: &str = r#"[[listener]]
address = "127.0.0.1:5300"
cluster = "dns"
[cluster.dns]
backends = ["1.1.1.1:53", "9.9.9.9:53"]
"#;

/// The summary of the whole demo. Where nothing came back, there is nothing to go on from.
pub(super) fn summary(demo: Stretch<'_>, paint: &Paint) -> String {
    let seconds = demo.length().as_secs_f64();
    let title = paint.title(format!("Flowgate demo: {seconds:.1} s in all"));
    let mut lines = vec![Line::default(), title.into(), Line::default()];
    lines.extend(table::tables(demo, paint));
    lines.push(Line::default());
    let mut text = written(&lines);
    text += &verdict(demo.to);
    text += &drops(demo.to);
    if demo.to.clients.answered > 0 {
        text += &next_step(paint);
    }
    text
}

fn verdict(end: &Sample) -> String {
    let clients = &end.clients;
    let [came, sent, answered, lost, astray] = [
        clients.clients,
        clients.sent,
        clients.answered,
        clients.sent.saturating_sub(clients.answered),
        clients.astray,
    ]
    .map(human::count);
    let counters = &end.balancer.counters;
    let [opened, closed] =
        [counters.flows_opened, counters.closed(CloseReason::Idle)].map(human::count);
    let order = match (clients.answered, clients.astray) {
        (0, _) => "not one got an answer".to_owned(),
        (_, 0) => "each kept its backend and got its own answers".to_owned(),
        _ => format!("{astray} answers were of another client or backend"),
    };
    format!(
        "{came} clients took part: {order}.\n\
         They sent {sent} datagrams: {answered} came back, {lost} were lost.\n\
         {opened} flows were opened; {closed} were closed after a second without datagrams.\n"
    )
}

/// A line for each reason for which the balancer dropped datagrams.
fn drops(end: &Sample) -> String {
    let counters = &end.balancer.counters;
    let dropped_for = |reason| {
        let drops = Direction::ALL.map(|way| counters.ledger(way).dropped_for(reason).datagrams);
        drops.iter().sum::<u64>()
    };
    let counted = DropReason::ALL.iter().map(|&reason| (reason, dropped_for(reason)));
    counted
        .filter(|&(_, dropped)| dropped > 0)
        .map(|(reason, dropped)| format!("Dropped: {} ({reason}).\n", human::count(dropped)))
        .collect()
}

fn next_step(paint: &Paint) -> String {
    let title = paint.title("Next: write these five lines to flowgate.toml");
    format!(
        "The last backend is slow on purpose: it answers only every {} ms.\n\n\
         {}\n\
         {FIRST_CONFIGURATION}\n\
         then: flowgate run flowgate.toml\n\
         and:  dig @127.0.0.1 -p 5300 example.org\n",
        NAP.as_millis(),
        written(&[title.into()]),
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::{start, two_seconds_later};
    use super::*;

    #[test]
    fn the_first_configuration_is_valid_and_has_five_lines() {
        assert_eq!(FIRST_CONFIGURATION.lines().count(), 5);
        let config = flowgate_config::parse(FIRST_CONFIGURATION, "flowgate.toml").unwrap();
        assert_eq!(config.warnings, []);
    }

    #[test]
    fn the_summary_counts_what_was_lost() {
        let text = summary(Stretch { from: &start(), to: &two_seconds_later() }, &Paint::plain());
        assert!(
            text.contains("They sent 1,005 datagrams: 1,000 came back, 5 were lost."),
            "{text}"
        );
        assert!(text.contains("each kept its backend"), "{text}");
        assert!(text.contains("Dropped: 3 (no_backend)."), "{text}");
        assert!(text.contains("flowgate run flowgate.toml"), "{text}");
    }

    #[test]
    fn a_demo_without_answers_leads_nowhere() {
        let text = summary(Stretch { from: &start(), to: &start() }, &Paint::plain());
        assert!(text.contains("not one got an answer"), "{text}");
        assert!(!text.contains("Next"), "{text}");
    }
}
