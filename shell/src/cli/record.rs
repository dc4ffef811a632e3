//! `flowgate record`: what a running Flowgate is told, in a file.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use form_urlencoded::Serializer;

use super::Failure;
use super::ask::{SocketOption, emptied, output_file, parse_duration, unwritten};
use super::human;
use crate::admin::escape::escaped_path;
use crate::recording::file::preamble;
use crate::sys::clock::Clock;

/// How long the process that takes over is waited for.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(2);

/// The arguments of `flowgate record`.
#[derive(Args, Debug)]
pub(super) struct RecordArguments {
    /// The file to write
    file: PathBuf,
    /// Stop after this time (default: on Ctrl-C)
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Record this share of the clients, each with all of its datagrams
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = parse_share)]
    sample: f64,
    /// Keep this many bytes of each datagram (default: as many as decisions need, usually none)
    #[arg(long, value_name = "BYTES")]
    payload: Option<u16>,
    /// Replace client addresses by others that keep their common prefixes
    #[arg(long)]
    anonymise: bool,
    #[command(flatten)]
    socket_option: SocketOption,
}

pub(super) fn run(arguments: &RecordArguments) -> Result<(), Failure> {
    let name = escaped_path(&arguments.file);
    let failed = |error| unwritten(&arguments.file, &error);
    let file = output_file(&arguments.file)?;
    let (clock, mut bytes) = (Clock::start(), 0_u64);
    let mut former_end = None;
    loop {
        let left = arguments.time.map(|time| time.saturating_sub(clock.uptime()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        let (mut outcome, mut beginning) = (Ok(()), Ok(()));
        let mut has_begun = false;
        let begun = || {
            if former_end.is_none() {
                beginning = emptied(&file).and_then(|()| (&file).write_all(&preamble()));
                eprintln!("recording to {name}; Ctrl-C ends it");
            }
            has_begun = true;
        };
        let followed = arguments.socket_option.follow(&target(arguments, left), begun, |more| {
            bytes += more.len() as u64;
            outcome = (&file).write_all(more);
            outcome.is_ok()
        });
        beginning.and(outcome).map_err(failed)?;
        match (followed, former_end) {
            // Another process may have taken over; that goes on with the same flows.
            (Ok(()), _) if has_begun => former_end = Some(clock.uptime()),
            (Ok(()), _) => break,
            (Err(failure), None) => return Err(failure),
            (Err(_), Some(end)) if clock.uptime() - end > SUCCESSOR_TIMEOUT => break,
            (Err(_), Some(_)) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    // A pipe or a device keeps nothing that could be lost.
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        file.sync_all().map_err(failed)?;
    }
    eprintln!("recorded {} in {}", human::bytes(bytes), human::span(clock.uptime()));
    Ok(())
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a share above 0 and up to 1, such as 0.01".to_owned())
}

/// What is asked for.
fn target(arguments: &RecordArguments, left: Option<Duration>) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("sample", &arguments.sample.to_string());
    if let Some(left) = left {
        query.append_pair("for", &humantime::format_duration(left).to_string());
    }
    if let Some(payload) = arguments.payload {
        query.append_pair("payload", &payload.to_string());
    }
    if arguments.anonymise {
        query.append_pair("anonymise", "true");
    }
    format!("/record?{}", query.finish())
}
