//! dnsdist, configured for a measurement as its guide on performance says: one thread, answers not
//! cached, nothing logged.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;

use super::program;
use crate::Result;
use crate::process::Scratch;

pub(super) fn find() -> std::result::Result<program::Program, String> {
    program::find(
        "dnsdist",
        &["--version"],
        "dnsdist is not installed (Debian: dnsdist)",
        configure,
    )
}

fn configure(
    path: &str,
    address: SocketAddr,
    backends: &[SocketAddr],
    scratch: &Scratch,
) -> Result<Vec<String>> {
    let file = scratch.path("dnsdist.conf");
    let mut text = format!(
        "setLocal(\"{address}\", {{reusePort=true}})\nsetACL(\"127.0.0.0/8\")\n\
         setMaxUDPOutstanding(65535)\nsetVerboseHealthChecks(false)\nsetServerPolicy(roundrobin)\n"
    );
    for (number, backend) in backends.iter().enumerate() {
        // Eight sockets for each backend; the health of those that serve here is not in doubt.
        let _ = writeln!(
            text,
            "newServer({{address=\"{backend}\", sockets=8, healthCheckMode=\"up\"}})"
        );
        // Version 1.7 has no such mode, and takes the same from a call.
        let _ = writeln!(text, "getServer({number}):setUp()");
    }
    fs::write(&file, text)?;
    let file = file.display().to_string();
    let arguments = [path, "--supervised", "--disable-syslog", "-C", &file];
    Ok(arguments.map(str::to_owned).to_vec())
}
