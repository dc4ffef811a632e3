//! The log: what operators read, on standard error. Nothing is logged for a datagram.

use flowgate_config::{Log, LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

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

/// Starts logging as configured. A second call does nothing but return a handle without effect.
pub fn init(log: &Log) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(filter_of(log.level));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // Fails only where a subscriber is set already.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LevelHandle(handle)
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
