//! `[log]`.

use crate::reader::Table;
use crate::value::{choice, name};
use crate::{Log, LogFormat, LogLevel};

pub(super) fn log(table: &Table<'_>) -> Option<Log> {
    table.get("flows", name).only("off");
    Some(Log {
        level: table.get("level", choice(LEVELS)).or(LogLevel::Info),
        format: table.get("format", choice(FORMATS)).or(LogFormat::Text),
    })
}

const LEVELS: &[(&str, LogLevel)] = &[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
];

const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
