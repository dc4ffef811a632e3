//! The log of flows: a line of JSON for each flow that has ended.
//!
//! Workers never wait for it. They hand over what there is to be said through a bounded queue, and
//! what finds the queue full is left out and counted, as is what comes faster than
//! [`LINES_PER_SECOND`]. A thread of its own writes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use flowgate_core::{FlowRecord, Instant};
use serde::Serialize;
use tracing::warn;

use crate::control::task::ControlTask;
use crate::sys::clock::Clock;
use crate::sys::files;

/// How many lines a second are written at most.
pub const LINES_PER_SECOND: u64 = 20_000;

/// How many flows may wait to be written.
const QUEUE: usize = 16_384;

/// How long a line waits at most before it can be read.
const LATENCY: Duration = Duration::from_millis(200);

/// How long the end waits for what is queued to be written: its reader may read no more.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowLogSink {
    /// Standard error.
    Stderr,
    /// The end of a file, which is made if there is none.
    File(PathBuf),
}

/// A running log. Dropping it writes what waits and ends it.
pub struct FlowLogWriter {
    logger: FlowLogger,
    task: ControlTask,
}

/// A channel into a log, for a worker.
#[derive(Clone, Default)]
pub struct FlowLogger {
    /// None: nothing is logged.
    channel: Option<LogChannel>,
}

#[derive(Clone)]
struct LogChannel {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// What is told beside the queue, which may be full.
#[derive(Debug, Default)]
struct Shared {
    left_out: AtomicU64,
    /// The file is to be opened again.
    reopen: AtomicBool,
    /// The log ends once the queue is empty.
    end: AtomicBool,
}

enum Message {
    Ended(Arc<str>, FlowRecord),
    Reopen,
    End,
}

impl FlowLogWriter {
    /// Starts a log.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, or the thread not started.
    pub fn start(destination: &FlowLogSink, clock: Clock) -> io::Result<Self> {
        let output = Output::open(destination)?;
        let (sender, messages) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let writer = Writer {
            clock,
            output,
            shared: Arc::clone(&shared),
            second_began: clock.now(),
            lines: 0,
            fails: false,
        };
        let task = ControlTask::spawn_blocking("flow-log", move || writer.run(&messages))?;
        let logger = FlowLogger { channel: Some(LogChannel { sender, shared }) };
        Ok(Self { logger, task })
    }

    /// A channel in.
    pub fn logger(&self) -> FlowLogger {
        self.logger.clone()
    }

    /// Opens the file again, since the one that was open has been moved away (log rotation).
    pub fn reopen(&self) {
        self.tell(Message::Reopen, |shared| &shared.reopen);
    }

    /// Says something in its turn or, where the queue is full, beside it. Never blocks: the
    /// reader of the log may read no more.
    fn tell(&self, message: Message, beside: impl Fn(&Shared) -> &AtomicBool) {
        if let Some(channel) = &self.logger.channel
            && channel.sender.try_send(message).is_err()
        {
            beside(&channel.shared).store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for FlowLogWriter {
    fn drop(&mut self) {
        self.task.release();
        self.tell(Message::End, |shared| &shared.end);
        if !self.task.join_within(SHUTDOWN_TIMEOUT) {
            warn!("the log of flows is not read: what waits for it is lost");
        }
    }
}

impl FlowLogger {
    /// Logs a flow of a listener, unless too many wait already. Never blocks.
    pub fn log(&self, listener: &Arc<str>, record: &FlowRecord) {
        let Some(channel) = &self.channel else { return };
        if channel.sender.try_send(Message::Ended(Arc::clone(listener), *record)).is_err() {
            channel.shared.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A line, in the order of its fields.
#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since 1970 (UTC).
    time: f64,
    listener: &'a str,
    client: SocketAddr,
    backend: SocketAddr,
    reason: &'static str,
    datagrams_to_backend: u64,
    datagrams_to_client: u64,
    bytes_to_backend: u64,
    bytes_to_client: u64,
    duration_seconds: f64,
    first_reply_seconds: Option<f64>,
}

/// A line that stands for those that were left out.
#[derive(Serialize)]
struct Omission {
    time: f64,
    flows_left_out: u64,
}

struct Writer {
    clock: Clock,
    output: Output,
    shared: Arc<Shared>,
    second_began: Instant,
    lines: u64,
    /// Whether the last write failed, so that the operator is told once.
    fails: bool,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let outcome = match messages.recv_timeout(LATENCY) {
                Ok(Message::Ended(listener, ended)) => self.write(&listener, &ended),
                Ok(Message::Reopen) => self.output.reopen(),
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if self.shared.end.load(Ordering::Relaxed) => break,
                Err(RecvTimeoutError::Timeout) => self.tell_omissions(),
            };
            self.complain(outcome);
            if self.shared.reopen.swap(false, Ordering::Relaxed) {
                let outcome = self.output.reopen();
                self.complain(outcome);
            }
        }
        let outcome = self.tell_omissions();
        self.complain(outcome);
    }

    fn write(&mut self, listener: &str, record: &FlowRecord) -> io::Result<()> {
        if self.clock.now() - self.second_began >= Duration::from_secs(1) {
            self.tell_omissions()?;
        }
        if self.lines >= LINES_PER_SECOND {
            self.shared.left_out.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.lines += 1;
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        let written = self.output.line(&Line {
            time: self.clock.unix_time().as_secs_f64(),
            listener,
            client: record.client,
            backend: record.backend_address,
            reason: record.reason.as_str(),
            datagrams_to_backend: record.to_backend.datagrams,
            datagrams_to_client: record.to_client.datagrams,
            bytes_to_backend: record.to_backend.bytes,
            bytes_to_client: record.to_client.bytes,
            duration_seconds: seconds(record.lasted_ns),
            first_reply_seconds: record.first_answer_ns.map(seconds),
        });
        if written.is_err() {
            self.shared.left_out.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// Ends a second: says how much was left out, if anything, and makes all of it readable.
    fn tell_omissions(&mut self) -> io::Result<()> {
        self.second_began = self.clock.now();
        self.lines = 0;
        let flows_left_out = self.shared.left_out.swap(0, Ordering::Relaxed);
        if flows_left_out > 0 {
            let time = self.clock.unix_time().as_secs_f64();
            let told = self.output.line(&Omission { time, flows_left_out });
            if told.is_err() {
                self.shared.left_out.fetch_add(flows_left_out, Ordering::Relaxed);
            }
            told?;
        }
        self.output.flush()
    }

    fn complain(&mut self, outcome: io::Result<()>) {
        if let Err(error) = &outcome
            && !self.fails
        {
            warn!("cannot write the log of flows: {error}; it resumes when that is fixed");
        }
        self.fails = outcome.is_err();
    }
}

/// What the lines are written to.
enum Output {
    Stderr,
    File { path: PathBuf, file: BufWriter<File> },
}

impl Output {
    fn open(destination: &FlowLogSink) -> io::Result<Self> {
        Ok(match destination {
            FlowLogSink::Stderr => Self::Stderr,
            FlowLogSink::File(path) => {
                Self::File { path: path.clone(), file: BufWriter::new(files::append_to(path)?) }
            }
        })
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File { path, file } = self {
            // What cannot be written to the old one is no reason to stay there.
            let flushed = file.flush();
            *file = BufWriter::new(files::append_to(path)?);
            return flushed;
        }
        Ok(())
    }

    /// Writes a line of JSON, which escapes whatever a name may hold.
    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        match self {
            Self::Stderr => io::stderr().lock().write_all(&text),
            Self::File { file, .. } => file.write_all(&text),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr => Ok(()),
            Self::File { file, .. } => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests;
