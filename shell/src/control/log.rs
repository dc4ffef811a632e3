//! The log: what operators read, on standard error. Nothing is logged for a datagram.
//!
//! A thread of its own writes, from a bounded queue: the reader of standard error may be slow, or
//! read no more, and nothing else waits for that. What finds the queue full is left out and counted.

use std::fmt;
use std::io::{self, IsTerminal, Write, stderr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, sync_channel};
use std::time::Duration;

use flowgate_config::{Log, LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::control::task::ControlTask;
use crate::sys::files;

/// Changes how much is logged while the process runs.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

impl LevelHandle {
    /// Logs this much from now on.
    pub fn set(&self, level: LogLevel) {
        // Fails only where the subscriber is gone, which lives as long as the process.
        let _ = self.0.modify(|filter| *filter = filter_of(level));
    }
}

/// How many lines may wait to be written.
const QUEUE: usize = 1_024;

/// How long [`flush`] waits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of lines, of which a process has one.
static LINES: OnceLock<SyncSender<Message>> = OnceLock::new();

/// How many lines found the queue full.
static LOST: AtomicU64 = AtomicU64::new(0);

enum Message {
    Line(Vec<u8>),
    Flush(mpsc::Sender<()>),
}

/// Where lines are put. Without a thread they are written at once.
#[derive(Clone, Copy)]
struct Queue;

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LINES.get() {
            None => stderr().lock().write_all(line)?,
            Some(lines) => {
                if lines.try_send(Message::Line(line.to_vec())).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines until the process ends.
fn write_lines(messages: &Receiver<Message>) {
    for message in messages {
        match message {
            // Where standard error is of no use there is nobody to tell.
            Message::Line(line) => drop(stderr().lock().write_all(&line)),
            Message::Flush(done) => drop(done.send(())),
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lines = lost, "log lines were lost: standard error is read too slowly");
        }
    }
}

/// Waits until what was logged is written, but not for long.
pub fn flush() {
    let (sender, done) = mpsc::channel();
    let is_asked = |lines: &SyncSender<Message>| lines.try_send(Message::Flush(sender)).is_ok();
    if LINES.get().is_some_and(is_asked) {
        let _ = done.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Starts logging as configured. A second call does nothing but return a handle without effect.
pub fn init(log: &Log) -> LevelHandle {
    let (sender, messages) = sync_channel(QUEUE);
    let write = move || write_lines(&messages);
    if LINES.get().is_none() && ControlTask::spawn_blocking("log", write).is_ok() {
        // Fails only where another thread has done the same meanwhile.
        let _ = LINES.set(sender);
    }
    let (filter, handle) = reload::Layer::new(filter_of(log.level));
    let lines = lines(log.format, goes_to_the_journal());
    // Fails only where a subscriber is set already.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LevelHandle(handle)
}

/// Writes lines to standard error. The journal has a time of its own for each.
fn lines<S>(format: LogFormat, journal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(|| Queue);
    let plain = Format::default().with_target(false);
    match (format, journal) {
        (LogFormat::Text, false) => layer.with_ansi(has_colours()).event_format(plain).boxed(),
        (LogFormat::Text, true) => layer.event_format(Journal(plain.without_time())).boxed(),
        (LogFormat::Json, false) => {
            layer.fmt_fields(JsonFields::new()).event_format(plain.json()).boxed()
        }
        (LogFormat::Json, true) => {
            let format = Journal(plain.json().without_time());
            layer.fmt_fields(JsonFields::new()).event_format(format).boxed()
        }
    }
}

/// Whether standard error is shown to a person who has nothing against colours
/// (<https://no-color.org>).
fn has_colours() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether standard error is a stream of systemd's journal, which says so in `$JOURNAL_STREAM`
/// (systemd.exec(5)) as the device and inode of the socket that it means. A child may have inherited
/// the variable and not the stream.
pub fn goes_to_the_journal() -> bool {
    let is_stream = |stream: String| {
        let (device, inode) = stream.split_once(':')?;
        let ours = files::identity_of_stderr()?;
        Some(device == ours.0.to_string() && inode == ours.1.to_string())
    };
    std::env::var("JOURNAL_STREAM").ok().and_then(is_stream).unwrap_or(false)
}

/// What stands before an error's line for the journal to know that it is one (sd-daemon(3)).
pub const JOURNAL_ERROR: &str = "<3>";

/// Puts before each line what tells the journal its priority.
struct Journal<F>(F);

impl<S, N, F> FormatEvent<S, N> for Journal<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => JOURNAL_ERROR,
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            Level::DEBUG | Level::TRACE => "<7>",
        };
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        text.lines().try_for_each(|line| writeln!(writer, "{priority}{line}"))
    }
}

/// Of the libraries no more than warnings: what they call informative is about themselves.
fn filter_of(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    Targets::new().with_default(ours.min(LevelFilter::WARN)).with_target("flowgate", ours)
}
