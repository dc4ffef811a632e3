//! nginx, configured for a measurement.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::process::Scratch;
use crate::workload::Workload;

/// Where to look for nginx: Debian installs it where a user's PATH does not lead.
const PROGRAMS: [&str; 2] = ["nginx", "/usr/sbin/nginx"];

/// An nginx that can balance UDP.
pub(super) struct Program {
    path: &'static str,
    version: String,
    /// The shared object to load, if the module is not built in.
    module: Option<PathBuf>,
}

impl Program {
    /// Finds nginx and its `stream` module, or says what is missing.
    pub(super) fn find() -> std::result::Result<Self, String> {
        let found = PROGRAMS
            .iter()
            .find_map(|path| Some((*path, Command::new(path).arg("-V").output().ok()?)));
        let Some((path, output)) = found else {
            return Err("nginx is not installed (Debian: nginx libnginx-mod-stream)".to_owned());
        };
        let about = String::from_utf8_lossy(&output.stderr).into_owned();
        let version = about
            .lines()
            .next()
            .and_then(|line| line.rsplit('/').next())
            .unwrap_or("of unknown version")
            .to_owned();
        let options: Vec<_> = about.split_whitespace().collect();
        if options.contains(&"--with-stream") {
            return Ok(Program { path, version, module: None });
        }
        let folder = options.iter().find_map(|option| option.strip_prefix("--modules-path="));
        let module =
            Path::new(folder.unwrap_or("/usr/lib/nginx/modules")).join("ngx_stream_module.so");
        if module.is_file() {
            Ok(Program { path, version, module: Some(module) })
        } else {
            Err("nginx has no stream module (Debian: libnginx-mod-stream)".to_owned())
        }
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The command that runs nginx with one worker in front of `backends`.
    pub(super) fn command(
        &self,
        address: SocketAddr,
        workload: &Workload,
        backends: &[SocketAddr],
        scratch: &Scratch,
    ) -> Result<Vec<String>> {
        let file = scratch.path("nginx.conf");
        fs::write(&file, self.configuration(address, workload, backends, scratch)?)?;
        let error_log = scratch.path("error.log").display().to_string();
        let file = file.display().to_string();
        Ok([self.path, "-e", &error_log, "-c", &file].map(str::to_owned).to_vec())
    }

    fn configuration(
        &self,
        address: SocketAddr,
        workload: &Workload,
        backends: &[SocketAddr],
        scratch: &Scratch,
    ) -> io::Result<String> {
        let load = self
            .module
            .as_ref()
            .map(|module| format!("load_module {};", module.display()))
            .unwrap_or_default();
        let responses = match workload.responses {
            0 => String::new(),
            number => format!("proxy_responses {number};"),
        };
        let servers = backends.iter().fold(String::new(), |mut list, backend| {
            let _ = write!(list, "server {backend}; ");
            list
        });
        Ok(format!(
            "{load}
daemon off;
pid {pid};
error_log {log} error;
worker_processes 1;
worker_rlimit_nofile 20000;
events {{
    worker_connections 16384;
}}
stream {{
    access_log off;
    upstream bench {{
        {servers}
    }}
    server {{
        listen {address} udp reuseport rcvbuf=4m sndbuf=4m;
        proxy_pass bench;
        proxy_timeout 60s;
        {responses}
    }}
}}
",
            pid = scratch.path("nginx.pid").display(),
            log = scratch.path("error.log").display(),
        ))
    }
}
