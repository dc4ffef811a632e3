//! Flowgate, configured for a measurement.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::Result;
use crate::process::Scratch;
use crate::workload::Workload;

/// The command that runs Flowgate with one worker in front of `backends`.
pub(super) fn command(
    program: &Path,
    address: SocketAddr,
    workload: &Workload,
    backends: &[SocketAddr],
    scratch: &Scratch,
) -> Result<Vec<String>> {
    let file = scratch.path("flowgate.toml");
    fs::write(&file, configuration(address, workload, backends))?;
    Ok(vec![program.display().to_string(), "run".to_owned(), file.display().to_string()])
}

fn configuration(address: SocketAddr, workload: &Workload, backends: &[SocketAddr]) -> String {
    let backends: String = backends.iter().fold(String::new(), |mut list, backend| {
        let _ = write!(list, "\"{backend}\", ");
        list
    });
    format!(
        r#"workers = 1

[[listener]]
address = "{address}"
cluster = "bench"

[cluster.bench]
balance = "round-robin"
idle_timeout = "60s"
responses = {responses}
upstream_reuse = "{reuse}"
backends = [{backends}]
"#,
        responses = workload.responses,
        reuse = workload.reuse,
    )
}
