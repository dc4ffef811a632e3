//! `flowgate trace`: what a running Flowgate decides on which datagrams, as it happens.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use form_urlencoded::Serializer;
use ipnet::IpNet;

use super::Failure;
use super::ask::{SocketOption, emptied, output_file, parse_duration, unwritten};
use super::flows::parse_network;
use crate::admin::escape::{escaped, escaped_json};
use crate::observe::event::TraceLine;
use crate::observe::pcapng::Capture;

/// The arguments of `flowgate trace`.
#[derive(Args, Debug)]
pub(super) struct TraceArguments {
    /// Only of clients in this network, or at this address
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    client: Option<IpNet>,
    /// Only what is for or from this backend: 10.0.0.1:53, or resolvers/10.0.0.1:53
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Only what is dropped
    #[arg(long)]
    drops: bool,
    /// Stop after this time (default: on Ctrl-C)
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Print each event as a line of JSON
    #[arg(long)]
    json: bool,
    /// Write the datagrams to this file too, for Wireshark (pcapng), with what was decided as comments
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    #[command(flatten)]
    socket_option: SocketOption,
}

pub(super) fn run(arguments: &TraceArguments) -> Result<(), Failure> {
    let file = match &arguments.pcap {
        Some(path) => Some(output_file(path)?),
        None => None,
    };
    let capture = RefCell::new(Ok(None));
    let mut outcome = Ok(());
    let begun = || {
        *capture.borrow_mut() = file.as_ref().map(begin).transpose();
        eprintln!("tracing; Ctrl-C ends it");
    };
    let mut is_over = false;
    let mut rest = Vec::new();
    arguments.socket_option.follow(&target(arguments), begun, |bytes| {
        rest.extend_from_slice(bytes);
        let whole = rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in rest[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(capture) = &mut *capture.borrow_mut() else { return false };
            outcome = show(line, arguments, capture.as_mut()).map(|ends| is_over |= ends);
            if outcome.is_err() || is_over {
                return false;
            }
        }
        rest.drain(..whole);
        true
    })?;
    if let (Err(error), Some(path)) = (capture.into_inner(), &arguments.pcap) {
        return Err(unwritten(path, &error));
    }
    outcome?;
    if is_over {
        return Ok(());
    }
    Err(Failure("the trace broke off; see the log of flowgate".to_owned()))
}

/// Shows one line; says whether no more is wanted.
fn show(
    line: &[u8],
    arguments: &TraceArguments,
    capture: Option<&mut Capture<&File>>,
) -> Result<bool, Failure> {
    let text = || escaped_json(&String::from_utf8_lossy(line)) + "\n";
    let is_read = |error| {
        Failure(format!(
            "what came is not an event ({error}); use the `flowgate` of the version that is running"
        ))
    };
    match serde_json::from_slice(line).map_err(is_read)? {
        TraceLine::Event(event) => {
            if let (Some(capture), Some(path)) = (capture, &arguments.pcap) {
                capture.write(&event).map_err(|error| unwritten(path, &error))?;
            }
            print(&if arguments.json { text() } else { format!("{event}\n") })
        }
        TraceLine::LeftOut { .. } if arguments.json => print(&text()),
        TraceLine::LeftOut { left_out } => {
            print(&format!("... {left_out} events left out: they come faster than they are read\n"))
        }
        TraceLine::End { .. } if arguments.json => print(&text()).map(|_| true),
        TraceLine::End { end } => {
            eprintln!("the trace is over: {}", escaped(&end));
            Ok(true)
        }
    }
}

/// Writes to standard output; says whether its reader has enough, as `head` does.
fn print(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(Failure(format!("cannot write to standard output: {error}"))),
    }
}

/// What is asked for.
fn target(arguments: &TraceArguments) -> String {
    let mut query = Serializer::new(String::new());
    if let Some(client) = arguments.client {
        query.append_pair("client", &client.to_string());
    }
    if let Some(backend) = &arguments.backend {
        query.append_pair("backend", backend);
    }
    if let Some(time) = arguments.time {
        query.append_pair("for", &humantime::format_duration(time).to_string());
    }
    if arguments.drops {
        query.append_pair("drops", "true");
    }
    if arguments.pcap.is_some() {
        query.append_pair("payload", "true");
    }
    format!("/trace?{}", query.finish())
}

fn begin(file: &File) -> io::Result<Capture<&File>> {
    emptied(file)?;
    Capture::begin(file)
}
