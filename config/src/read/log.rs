//! `[log]`.

use std::path::PathBuf;

use crate::nearest::nearest;
use crate::reader::{Item, Table};
use crate::value::{choice, text};
use crate::{FlowLog, Log, LogFormat, LogLevel};

pub(super) fn log(table: &Table<'_>) -> Option<Log> {
    Some(Log {
        level: table.get("level", choice(LEVELS)).or(LogLevel::Info),
        format: table.get("format", choice(FORMATS)).or(LogFormat::Text),
        flows: table.get("flows", flows).or(FlowLog::Off),
    })
}

const LEVELS: &[(&str, LogLevel)] = &[
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
];

const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

/// A path has a slash or a dot, so that a misspelt word makes no file of that name.
fn flows(item: &Item<'_>) -> Option<FlowLog> {
    match text(item).unwrap_or_default() {
        "off" => Some(FlowLog::Off),
        "stderr" => Some(FlowLog::Stderr),
        path if path.contains(['/', '.']) && !path.ends_with('/') && !path.contains('\0') => {
            Some(FlowLog::File(PathBuf::from(path)))
        }
        other => item.refuse_typo(
            "off, stderr, or the path of a file, such as \"/var/log/flowgate/flows.json\"",
            nearest(other, ["off", "stderr"].into_iter()),
        ),
    }
}
