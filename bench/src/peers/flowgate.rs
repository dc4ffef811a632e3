//! Flowgate, configured for a measurement.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::payload::Payload;
use crate::process::Scratch;
use crate::workload::{Mode, Workload};

/// Where it can be asked how it is.
pub(super) struct Admin {
    /// Its metrics; none: it shows none.
    pub(super) http: Option<SocketAddr>,
    /// Its control socket.
    pub(super) socket: PathBuf,
}

/// The command that runs Flowgate with one worker in front of `backends`.
pub(super) fn command(
    program: &Path,
    address: SocketAddr,
    workload: &Workload,
    backends: &[SocketAddr],
    admin: &Admin,
    scratch: &Scratch,
) -> Result<Vec<String>> {
    let file = scratch.path("flowgate.toml");
    fs::write(&file, configuration(address, workload, backends, admin))?;
    Ok(vec![program.display().to_string(), "run".to_owned(), file.display().to_string()])
}

fn configuration(
    address: SocketAddr,
    workload: &Workload,
    backends: &[SocketAddr],
    admin: &Admin,
) -> String {
    let http = admin.http.map(|http| format!("http = \"{http}\"")).unwrap_or_default();
    let backends: String = backends.iter().fold(String::new(), |mut list, backend| {
        let _ = write!(list, "\"{backend}\", ");
        list
    });
    format!(
        r#"workers = 1

[admin]
socket = {socket:?}
{http}

[[listener]]
address = "{address}"
cluster = "bench"

[cluster.bench]
{mode}
backends = [{backends}]
"#,
        socket = admin.socket,
        mode = mode(workload),
    )
}

/// The keys of the cluster beside its backends.
fn mode(workload: &Workload) -> String {
    let Workload { responses, shared, payload, .. } = workload;
    let upstream = if *shared { "shared" } else { "per-flow" };
    let transactions = match payload {
        Payload::Plain => "off",
        Payload::Dns => "dns",
    };
    match workload.mode {
        Mode::Session => format!(
            "balance = \"round-robin\"\nidle_timeout = \"60s\"\nresponses = {responses}\n\
             upstream = \"{upstream}\"\ntransactions = \"{transactions}\""
        ),
        Mode::OneWay => "mode = \"one-way\"\nbalance = \"round-robin\"".to_owned(),
        Mode::FanOut(_) => "mode = \"fan-out\"".to_owned(),
    }
}
