//! What all commands share that ask a running Flowgate, and those that have it do something.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use flowgate_config::hex;
use serde::Serialize;

use super::Failure;
use crate::admin::client;
use crate::admin::escape::{escaped, escaped_json, escaped_path};
use crate::admin::request::{Request, Response};
use crate::admin::socket_path;
use crate::sys::{files, process};

/// How long an answer may take. A reload may wait for names to be resolved.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// From one look at a process that is to end to the next.
const POLL: Duration = Duration::from_millis(50);

/// Which Flowgate is meant.
#[derive(Args, Clone, Debug)]
pub(super) struct SocketOption {
    /// The control socket of the running Flowgate
    ///
    /// Unless it is given: control.sock in $RUNTIME_DIRECTORY, else in $XDG_RUNTIME_DIR/flowgate,
    /// else in /tmp/flowgate-UID; and if there is none, in /run/flowgate, where the system's service
    /// has it. On Windows: the file control.token in %LOCALAPPDATA%\flowgate, else that of the service.
    #[arg(long, value_name = "PATH", env = "FLOWGATE_SOCKET")]
    socket: Option<PathBuf>,
}

impl SocketOption {
    /// Where to ask.
    pub(super) fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(socket_path::path_to_ask)
    }

    /// Reads what goes on, as long as `read` says to go on; says to `begun` when it does.
    pub(super) fn follow(
        &self,
        target: &str,
        begun: impl FnOnce(),
        read: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Failure> {
        match client::follow(&self.path(), target, REPLY_TIMEOUT, begun, read)? {
            None => Ok(()),
            Some(refusal) => Err(fault(&refusal)),
        }
    }

    /// Asks, and returns what is answered.
    pub(super) fn ask(&self, request: &Request) -> Result<Response, Failure> {
        Ok(client::request(&self.path(), request, REPLY_TIMEOUT)?)
    }
}

/// Which Flowgate is meant, and how its answer is printed.
#[derive(Args, Clone, Debug)]
pub(super) struct ClientOptions {
    #[command(flatten)]
    socket_option: SocketOption,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl ClientOptions {
    /// Asks for a document, which `pick` finds in the answer, and prints it, as JSON or as `text`
    /// says.
    pub(super) fn print<D: Serialize>(
        &self,
        request: &Request,
        pick: impl FnOnce(&Response) -> Option<&D>,
        text: impl FnOnce(&D) -> String,
    ) -> Result<(), Failure> {
        let answer = self.socket_option.ask(request)?;
        match pick(&answer) {
            Some(document) if self.json => put(&json(document)?),
            Some(document) => put(&text(document)),
            None => self.fail(&answer),
        }
    }

    /// Has something done and says `done`, with whatever there is to note about it.
    fn have_done(&self, request: &Request, done: &str) -> Result<(), Failure> {
        match self.socket_option.ask(request)? {
            answer @ Response::Done { .. } if self.json => put(&json(&answer)?),
            Response::Done { notes } => {
                let notes = notes.iter().map(|note| format!("  {}\n", escaped(note)));
                put(&format!("{done}\n{}", notes.collect::<String>()))
            }
            answer => self.fail(&answer),
        }
    }

    /// Says why there is not what was asked for.
    fn fail(&self, answer: &Response) -> Result<(), Failure> {
        if self.json {
            put(&json(answer)?)?;
        }
        Err(fault(answer))
    }
}

/// Why there is not what was asked for.
pub(super) fn fault(answer: &Response) -> Failure {
    Failure(match answer {
        Response::Refused { reasons } => refusal(reasons),
        _ => "the answer is not one to this question; use the `flowgate` of the version that is \
              running"
            .to_owned(),
    })
}

fn refusal(reasons: &[String]) -> String {
    match reasons {
        [] => "refused, and no reason is given".to_owned(),
        [reason] => format!("refused: {}", escaped(reason)),
        reasons => {
            let lines = reasons.iter().map(|reason| format!("\n  {}", escaped(reason)));
            format!("refused for {} reasons:{}", reasons.len(), lines.collect::<String>())
        }
    }
}

/// A document as JSON that a terminal can be shown.
pub(super) fn json(document: &impl Serialize) -> Result<String, Failure> {
    Ok(escaped_json(&serde_json::to_string_pretty(document)?) + "\n")
}

/// Opens a file to be written, for its owner alone. What it holds stays. A pipe that nobody reads yet is
/// waited for, as by any command.
pub(super) fn output_file(path: &Path) -> Result<File, Failure> {
    if files::is_pipe(path) {
        match files::append_to(path) {
            Ok(pipe) => return Ok(pipe),
            Err(_) => eprintln!("waiting for a reader of {}", escaped_path(path)),
        }
    }
    files::private(path).map_err(|error| unwritten(path, &error))
}

/// What cannot be written.
pub(super) fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure(format!("cannot write {}: {error}", escaped_path(path)))
}

/// Nothing is in a file any more, unless it is one that keeps nothing.
pub(super) fn emptied(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(0) } else { Ok(()) }
}

/// Writes to standard output. Anyone who reads it may have seen enough before the end, as `head` does.
pub(super) fn put(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The arguments of `flowgate reload`.
#[derive(Args, Debug)]
pub(super) struct ReloadArguments {
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn reload(arguments: &ReloadArguments) -> Result<(), Failure> {
    arguments.options.have_done(&Request::Reload, "reloaded")
}

/// The arguments of `flowgate ready`.
#[derive(Args, Debug)]
pub(super) struct ReadyArguments {
    #[command(flatten)]
    socket_option: SocketOption,
}

pub(super) fn ready(arguments: &ReadyArguments) -> Result<(), Failure> {
    let answer = arguments.socket_option.ask(&Request::Status)?;
    let Response::Status(status) = &answer else { return Err(fault(&answer)) };
    match &*status.not_ready() {
        [] => put("ready\n"),
        reasons => {
            let lines = reasons.iter().map(|reason| format!("\n  {}", escaped(reason.trim_end())));
            Err(Failure(format!("not ready:{}", lines.collect::<String>())))
        }
    }
}

/// The arguments of `flowgate drain`.
#[derive(Args, Debug)]
pub(super) struct DrainArguments {
    /// The backend, as `flowgate status` names it: resolvers/10.0.0.1:53
    #[arg(value_name = "CLUSTER/BACKEND", value_parser = parse_backend)]
    backend: String,
    /// Close its remaining flows after this time; the clients' next datagrams open flows on other backends
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    deadline: Option<Duration>,
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn drain(arguments: &DrainArguments) -> Result<(), Failure> {
    let DrainArguments { backend, deadline, options } = arguments;
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let request =
        Request::Drain { backend: backend.clone(), deadline_ms: deadline.map(milliseconds) };
    options.have_done(&request, &format!("{} gets no new flows", escaped(backend)))
}

/// The arguments of `flowgate undrain`.
#[derive(Args, Debug)]
pub(super) struct UndrainArguments {
    /// The backend, as `flowgate status` names it: resolvers/10.0.0.1:53
    #[arg(value_name = "CLUSTER/BACKEND", value_parser = parse_backend)]
    backend: String,
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn undrain(arguments: &UndrainArguments) -> Result<(), Failure> {
    let UndrainArguments { backend, options } = arguments;
    let request = Request::Undrain { backend: backend.clone() };
    options.have_done(&request, &format!("{} gets new flows again", escaped(backend)))
}

/// The arguments of `flowgate backend`.
#[derive(Args, Debug)]
pub(super) struct BackendArguments {
    /// The backend, as `flowgate status` names it: resolvers/10.0.0.1:53
    #[arg(value_name = "CLUSTER/BACKEND", value_parser = parse_backend)]
    backend: String,
    #[command(subcommand)]
    change: BackendChange,
}

#[derive(Debug, Subcommand)]
enum BackendChange {
    /// Give it another weight, which holds until the next reload
    Weight {
        /// Its share of new flows, relative to the other backends' weights; 0: no new flows
        weight: u32,
        #[command(flatten)]
        options: ClientOptions,
    },
}

pub(super) fn backend(arguments: &BackendArguments) -> Result<(), Failure> {
    let BackendArguments { backend, change: BackendChange::Weight { weight, options } } = arguments;
    let request = Request::Weight { backend: backend.clone(), weight: *weight };
    let done = format!("{} has weight {weight} until the next reload", escaped(backend));
    options.have_done(&request, &done)
}

/// The arguments of `flowgate upgrade`.
#[derive(Args, Debug)]
pub(super) struct UpgradeArguments {
    /// The program to start; default: the file the running process was started from, which a
    /// package may have replaced since
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn upgrade(arguments: &UpgradeArguments) -> Result<(), Failure> {
    let UpgradeArguments { binary, options } = arguments;
    // The running process may be in another directory.
    let binary = binary.as_deref().map(std::path::absolute).transpose()?;
    options.have_done(&Request::Upgrade { binary }, "upgraded")
}

/// The arguments of `flowgate snapshot`.
#[derive(Args, Debug)]
pub(super) struct SnapshotArguments {
    #[command(flatten)]
    socket_option: SocketOption,
}

pub(super) fn snapshot(arguments: &SnapshotArguments) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        return Err(Failure("a snapshot is not for a terminal: write it to a file".to_owned()));
    }
    match arguments.socket_option.ask(&Request::Snapshot)? {
        Response::Snapshot { hex } => {
            let bytes =
                hex::decode(&hex).ok_or_else(|| Failure("the answer is damaged".to_owned()))?;
            Ok(stdout.write_all(&bytes).and_then(|()| stdout.flush())?)
        }
        answer => Err(fault(&answer)),
    }
}

/// The arguments of `flowgate stop`.
#[derive(Args, Debug)]
pub(super) struct StopArguments {
    /// Stop at once, without waiting for flows
    #[arg(long)]
    now: bool,
    /// Return when the process has ended
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn stop(arguments: &StopArguments) -> Result<(), Failure> {
    let StopArguments { now, wait, options } = arguments;
    let done = if *now { "stopping" } else { "stopping when the flows have ended" };
    // Once it stops it answers no more.
    let pid = match wait.then(|| options.socket_option.ask(&Request::Status)).transpose()? {
        Some(Response::Status(status)) => Some(status.pid),
        _ => None,
    };
    options.have_done(&Request::Stop { now: *now }, done)?;
    while pid.is_some_and(|pid| !process::has_ended(pid)) {
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn parse_backend(text: &str) -> Result<String, String> {
    match text.rsplit_once('/') {
        Some((cluster, backend)) if !cluster.is_empty() && !backend.is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err("expected a cluster and one of its backends, such as \
                  resolvers/10.0.0.1:53; `flowgate status` lists them"
            .to_owned()),
    }
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a duration such as 30s or \"1m 30s\"".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_a_refusal_is_shown_escaped() {
        assert_eq!(refusal(&["no\x1b[2J".into()]), "refused: no\\u{1b}[2J");
        let reasons = ["a\nb".to_owned(), "c".to_owned()];
        assert_eq!(refusal(&reasons), "refused for 2 reasons:\n  a\\nb\n  c");
    }

    #[test]
    fn a_backend_is_named_with_its_cluster() {
        assert_eq!(parse_backend("a/b/[::1]:53").as_deref(), Ok("a/b/[::1]:53"));
        for wrong in ["", "/", "dns/", "/10.0.0.1:53", "10.0.0.1:53"] {
            assert!(parse_backend(wrong).is_err(), "{wrong}");
        }
    }
}
