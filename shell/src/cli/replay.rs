//! `flowgate replay`: a recording or a capture, played through the core.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use flowgate_config::{Config, Listener};
use serde::Serialize;

use super::Failure;
use super::ask::{json, put};
use super::columns::{Align, Table};
use super::human;
use crate::admin::escape::{escaped, escaped_path};
use crate::recording::capture::{CaptureError, CaptureReader};
use crate::recording::file::{MAGIC, RecordingExtent, RecordingReader};
use crate::recording::player::{PlayReport, PlayStretch, Player};
use crate::sys::clock::Clock;

/// How many flows a listener has room for where nobody says.
const MAX_FLOWS: u32 = 1 << 20;

/// How many lines tell of what came when.
const MAX_LINES: u64 = 20;

/// The arguments of `flowgate replay`.
#[derive(Args, Debug)]
pub(super) struct ReplayArguments {
    /// A recording, or a capture (pcap, pcapng)
    file: PathBuf,
    /// Use this configuration instead of the recorded one
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// The listener that a capture is played to; optional if there is only one
    #[arg(long, value_name = "NAME", requires = "config")]
    listener: Option<String>,
    /// Fail unless every decision is the recorded one
    #[arg(long, conflicts_with = "config")]
    verify: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct ReplayDocument<'a> {
    /// Whether the file was read to its end.
    whole: bool,
    /// What is to be known about it.
    notes: &'a [String],
    /// How many bursts were played in a second.
    bursts_per_second: f64,
    #[serde(flatten)]
    report: &'a PlayReport,
}

/// What came of a file.
pub(super) struct Played {
    pub(super) report: PlayReport,
    pub(super) notes: Vec<String>,
    pub(super) is_whole: bool,
}

pub(super) fn run(arguments: &ReplayArguments) -> Result<(), Failure> {
    let config = arguments.config.as_deref().map(flowgate_config::load).transpose()?;
    let clock = Clock::start();
    let name = escaped_path(&arguments.file);
    let played = if is_recording(&arguments.file)? {
        let player = match &config {
            Some(config) => Player::with(Some(config)),
            None => Player::as_recorded(),
        };
        let (player, mut notes, is_whole) = play(&arguments.file, player)?;
        if arguments.verify && (player.head().sample < 1.0 || player.head().anonymised) {
            return Err(Failure(format!(
                "{name} does not hold all clients as they were, so that not all that was decided \
                 follows from it; to verify, record without --sample and --anonymise"
            )));
        }
        notes.extend(player.notes().iter().cloned());
        Played { report: player.report(), notes, is_whole }
    } else {
        let Some(config) = &config else {
            return Err(Failure(format!(
                "{name} is not a recording of flowgate; if it is a capture (pcap, pcapng), say with \
                 --config who plays it"
            )));
        };
        play_capture(&arguments.file, config, arguments.listener.as_deref())?
    };
    let seconds = clock.uptime().as_secs_f64();
    if arguments.json {
        let document = ReplayDocument {
            whole: played.is_whole,
            notes: &played.notes,
            bursts_per_second: played.report.bursts as f64 / seconds.max(1e-9),
            report: &played.report,
        };
        put(&json(&document)?)?;
    } else {
        put(&text(&played, Duration::from_secs_f64(seconds)))?;
    }
    verdict(&played.report, arguments.verify)
}

/// Whether what was decided is what had been decided.
fn verdict(report: &PlayReport, is_asked: bool) -> Result<(), Failure> {
    match &report.first_difference {
        Some(index) => Err(Failure(format!(
            "the core decides otherwise than it did when this was recorded, first in {}: it is \
             another version, or this is a bug, and the recording shows it",
            escaped(index)
        ))),
        None if is_asked && report.blocks_compared == 0 => {
            Err(Failure("nothing was recorded that could be verified".to_owned()))
        }
        None => Ok(()),
    }
}

/// Whether a file begins as a recording.
pub(super) fn is_recording(path: &Path) -> Result<bool, Failure> {
    let mut file = open(path)?;
    let mut mark = [0; 8];
    Ok(file.read_exact(&mut mark).is_ok() && mark == *MAGIC)
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path)
        .map_err(|error| Failure(format!("cannot read {}: {error}", escaped_path(path))))
}

/// Plays a recording, as far as it can be read. Says what is to be known, and whether that was all.
pub(super) fn play<'c>(
    path: &Path,
    mut player: Player<'c>,
) -> Result<(Player<'c>, Vec<String>, bool), Failure> {
    let mut reader = RecordingReader::new(BufReader::with_capacity(1 << 20, open(path)?))?;
    while let Some(block) = reader.next_block()? {
        player.play(block)?;
    }
    let (notes, is_whole) = match reader.extent() {
        RecordingExtent::Whole => (Vec::new(), true),
        RecordingExtent::Cut(at) => {
            (vec![format!("the recording is cut short: read up to byte {at}")], false)
        }
        RecordingExtent::Damaged(at) => {
            (vec![format!("the recording is damaged: read up to byte {at}")], false)
        }
    };
    Ok((player, notes, is_whole))
}

/// Plays a capture to a listener of a configuration that knows no client yet.
fn play_capture(path: &Path, config: &Config, name: Option<&str>) -> Result<Played, Failure> {
    let listener = listener_of(config, name)?;
    let file = BufReader::with_capacity(1 << 20, open(path)?);
    let mut reader = CaptureReader::new(file)
        .map_err(|error: CaptureError| Failure(format!("{}: {error}", escaped_path(path))))?;
    let mut player = Player::with(None);
    let backends = listener.cluster.backends(|_| Vec::new());
    let max_flows = listener.max_flows.map_or(MAX_FLOWS, |flows| flows.get());
    let manager = listener.manager_config(listener.address, max_flows, Vec::new(), false, backends);
    player.begin_with(listener, manager);
    let (mut origin, mut others) = (None, 0_u64);
    while let Some(datagram) = reader.next_datagram()? {
        let origin = *origin.get_or_insert(datagram.nanos);
        match datagram.as_input(listener.address, origin) {
            Some((input, now)) => player.tell(input, now),
            None => others += 1,
        }
    }
    let mut notes = Vec::new();
    if others > 0 {
        notes.push(format!(
            "{others} datagrams are neither to nor from port {}: left out",
            listener.address.port()
        ));
    }
    if reader.is_cut() {
        notes.push("the capture is cut short, or damaged: read up to there".to_owned());
    }
    Ok(Played { is_whole: !reader.is_cut(), report: player.report(), notes })
}

fn listener_of<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c Listener, Failure> {
    let names = || {
        let names: Vec<_> = config.listeners.iter().map(|l| format!("{:?}", l.name)).collect();
        names.join(", ")
    };
    match (name, &config.listeners[..]) {
        (None, [only]) => Ok(only),
        (None, _) => Err(Failure(format!("say with --listener which is meant: {}", names()))),
        (Some(name), all) => all.iter().find(|listener| listener.name == name).ok_or_else(|| {
            Failure(format!("there is no listener {name:?}; there are {}", names()))
        }),
    }
}

/// The report as people read it.
fn text(played: &Played, took: Duration) -> String {
    let Played { report, notes, .. } = played;
    let mut text = format!(
        "{} bursts, {} datagrams in {} of the recording; played in {} ({})\n",
        human::count(report.bursts),
        human::count(report.datagrams),
        human::seconds(report.seconds),
        human::span(took),
        human::rate(report.bursts, took),
    );
    for note in notes {
        text += &format!("note: {}\n", escaped(note));
    }
    if report.left_out > 0 {
        text += &format!("note: {} inputs are missing in it\n", human::count(report.left_out));
    }
    if report.blocks_compared > 0 && report.first_difference.is_none() {
        text += &format!(
            "verified: all that is decided is what was decided, in {} blocks\n",
            human::count(report.blocks_compared)
        );
    }
    text += &format!(
        "flows: {} opened, {} moved to another backend{}\n",
        human::count(report.flows_opened),
        human::count(report.flows_moved),
        listed(&report.flows_closed, ", closed: "),
    );
    text += &format!(
        "dropped:{}\n",
        match &*listed(&report.dropped, " ") {
            "" => " nothing",
            reasons => reasons,
        }
    );
    if report.answers_without_flow > 0 {
        text += &format!(
            "{} answers came for clients without a flow\n",
            human::count(report.answers_without_flow)
        );
    }
    format!("{text}\n{}\n{}", shares(report), timeline(report))
}

fn listed<K: std::fmt::Display>(counts: &BTreeMap<K, u64>, before: &str) -> String {
    let listed: Vec<_> =
        counts.iter().map(|(reason, count)| format!("{} {reason}", human::count(*count))).collect();
    if listed.is_empty() { String::new() } else { format!("{before}{}", listed.join(", ")) }
}

fn shares(report: &PlayReport) -> Table<5> {
    let mut table = Table::new([
        ("BACKEND", Align::Left),
        ("FLOWS", Align::Right),
        ("DATAGRAMS", Align::Right),
        ("BYTES", Align::Right),
        ("SHARE", Align::Right),
    ]);
    let all: u64 = report.backends.values().map(|share| share.datagrams).sum();
    for (backend, share) in &report.backends {
        table.row([
            backend.to_string(),
            human::count(share.flows),
            human::count(share.datagrams),
            human::bytes(share.bytes),
            human::percent(share.datagrams, all),
        ]);
    }
    table
}

fn timeline(report: &PlayReport) -> Table<5> {
    let mut table = Table::new([
        ("FROM SECOND", Align::Right),
        ("DATAGRAMS", Align::Right),
        ("NEW FLOWS", Align::Right),
        ("DROPPED", Align::Right),
        ("BECAUSE OF", Align::Left),
    ]);
    let last = report.timeline.keys().next_back().copied().unwrap_or(0);
    let step = (last / MAX_LINES + 1).max(1);
    let mut lines = BTreeMap::<u64, PlayStretch>::new();
    for (second, stretch) in &report.timeline {
        *lines.entry(second / step * step).or_default() += stretch.clone();
    }
    for (second, stretch) in lines {
        table.row([
            human::count(second),
            human::count(stretch.datagrams),
            human::count(stretch.flows),
            human::count(stretch.dropped),
            listed(&stretch.dropped_by, ""),
        ]);
    }
    table
}
