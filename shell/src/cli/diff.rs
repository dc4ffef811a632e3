//! `flowgate diff`: what another configuration changes, and what it would have made of recorded traffic.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::ask::{json, put};
use super::columns::{Align, Table};
use super::human;
use super::replay::{is_recording, play};
use crate::admin::escape::{escaped, escaped_path};
use crate::recording::compare::{Becomes, ConfigDiff, FlowsBecome, TrafficDiff, as_reloaded};
use crate::recording::player::Player;

/// How many clients that move are listed.
const MAX_LISTED: usize = 10;

/// The arguments of `flowgate diff`.
#[derive(Args, Debug)]
pub(super) struct DiffArguments {
    /// The configuration that is in force
    old: PathBuf,
    /// The new configuration
    new: PathBuf,
    /// Traffic to play through both: see `flowgate record`
    recording: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct DiffDocument<'a> {
    /// What is to be known about the recording.
    notes: &'a [String],
    #[serde(flatten)]
    diff: &'a ConfigDiff,
}

pub(super) fn run(arguments: &DiffArguments) -> Result<(), Failure> {
    let (old, new) =
        (flowgate_config::load(&arguments.old)?, flowgate_config::load(&arguments.new)?);
    let mut diff = ConfigDiff::between(&old, &new);
    let mut notes = Vec::new();
    if let Some(path) = &arguments.recording {
        if !is_recording(path)? {
            return Err(Failure(format!("{} is not a recording of flowgate", escaped_path(path))));
        }
        let (by_old, more, _) = play(path, Player::with(Some(&old)))?;
        notes.extend(more);
        let reloaded = as_reloaded(&old, &new);
        let (by_new, _, _) = play(path, Player::with(Some(&reloaded)))?;
        let of_old = |note| format!("{}: {note}", arguments.old.display());
        notes.extend(by_old.notes().iter().map(of_old));
        let destinations = (by_old.destinations(), by_new.destinations());
        let reports = (by_old.report(), by_new.report());
        diff = diff.with_traffic((&reports.0, &destinations.0), (&reports.1, &destinations.1));
    }
    if arguments.json {
        put(&json(&DiffDocument { notes: &notes, diff: &diff })?)?;
    } else {
        put(&text(&diff, &notes))?;
    }
    if !diff.refused.is_empty() {
        return Err(Failure(format!("a reload would be refused: {}", diff.refused.join("; "))));
    }
    if diff.flows_lost {
        return Err(Failure("flows would be lost".to_owned()));
    }
    Ok(())
}

/// The answer as people read it.
fn text(diff: &ConfigDiff, notes: &[String]) -> String {
    let mut text = String::new();
    for note in notes {
        text += &format!("note: {}\n", escaped(note));
    }
    if diff.is_same {
        text += "The two say the same.\n";
    }
    for change in &diff.settings {
        let shown = |value: &Option<String>| match value.as_deref() {
            None => "(none)".to_owned(),
            Some("") => "\"\"".to_owned(),
            Some(value) => escaped(value),
        };
        text += &format!(
            "{}: {} -> {}\n",
            escaped(&change.key),
            shown(&change.old),
            shown(&change.new)
        );
    }
    for key in &diff.needs_restart {
        text += &format!("{key}: takes effect when flowgate is started again\n");
    }
    text += "\nA reload:\n";
    for reason in &diff.refused {
        text += &format!("  is refused: {reason}\n");
    }
    for effect in &diff.reload {
        let what = match &effect.backend {
            Some(backend) => {
                format!("backend {} of listener {}", escaped(backend), escaped(&effect.listener))
            }
            None => format!("listener {}", escaped(&effect.listener)),
        };
        let becomes = match effect.becomes {
            Becomes::Added => "is added",
            Becomes::Removed => "is removed",
            Becomes::Changed => "changes its mode",
            Becomes::Kept => "is kept",
        };
        let flows = match effect.flows {
            FlowsBecome::None => "",
            FlowsBecome::Kept => " with its flows",
            FlowsBecome::Moved => ": its flows go on with others",
            FlowsBecome::Closed => ": its flows end",
        };
        text += &format!("  {what} {becomes}{flows}\n");
    }
    if let Some(traffic) = &diff.traffic {
        text += &traffic_text(traffic);
    }
    text
}

fn traffic_text(traffic: &TrafficDiff) -> String {
    let (moved, lost) = (traffic.moved.len() as u64, traffic.flows_lost);
    let mut text = format!(
        "\nOf {} recorded clients {} {} elsewhere; {} {} lost.\n",
        human::count(traffic.clients),
        human::count(moved),
        if moved == 1 { "goes" } else { "go" },
        human::count(lost),
        if lost == 1 { "flow is" } else { "flows are" },
    );
    let index = |backend: Option<std::net::SocketAddr>| {
        backend.map_or("nowhere".to_owned(), |backend| backend.to_string())
    };
    for client in traffic.moved.iter().take(MAX_LISTED) {
        let (from, to) = (index(client.from), index(client.to));
        text += &format!("  {} of {}: {from} -> {to}\n", client.client, escaped(&client.listener));
    }
    if traffic.moved.len() > MAX_LISTED {
        text += "  ... --json lists all\n";
    }
    let mut table = Table::new([
        ("BACKEND", Align::Left),
        ("FLOWS", Align::Right),
        ("THEN", Align::Right),
        ("SHARE", Align::Right),
        ("THEN", Align::Right),
    ]);
    let all = |index: usize| -> u64 {
        traffic.backends.values().map(|shares| shares[index].datagrams).sum()
    };
    let all = [all(0), all(1)];
    for (backend, shares) in &traffic.backends {
        let share = |index: usize| human::percent(shares[index].datagrams, all[index]);
        table.row([
            backend.to_string(),
            human::count(shares[0].flows),
            human::count(shares[1].flows),
            share(0),
            share(1),
        ]);
    }
    text += &format!("\n{table}");
    for (what, counts) in [("dropped", &traffic.dropped), ("closed", &traffic.flows_closed)] {
        for (reason, [old, new]) in counts.iter().filter(|(_, [old, new])| old != new) {
            text += &format!("{what} {reason}: {} -> {}\n", human::count(*old), human::count(*new));
        }
    }
    text
}
