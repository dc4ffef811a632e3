//! What new flows are placed by, and the keys of QUIC-LB.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flowgate_config::{Config, parse};
use flowgate_core::config::{Affinity, Transactions, UpstreamMode};
use flowgate_quic_lb::{FirstOctet, QuicLbConfig};

fn text(cluster: &str) -> String {
    format!(
        "[[listener]]\naddress = \"0.0.0.0:443\"\ncluster = \"web\"\n[cluster.web]\n{cluster}\n"
    )
}

fn errors(cluster: &str) -> String {
    parse(&text(cluster), "f.toml").expect_err("it is refused").to_string()
}

fn valid(cluster: &str) -> Config {
    parse(&text(cluster), "f.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

const BACKENDS: &str = "backends = [\"10.0.0.1:443\"]\n";

#[test]
fn every_affinity_is_read() {
    for (written, affinity) in [
        ("\"host\"", Affinity::Host),
        ("\"quic\"", Affinity::Quic),
        ("\"wireguard\"", Affinity::WireGuard),
        ("\"sip-call-id\"", Affinity::SipCallId),
        ("{ dtls-cid = 8 }", Affinity::DtlsCid { length: 8 }),
        ("{ offset = 3, length = 16 }", Affinity::Offset { offset: 3, length: 16 }),
    ] {
        let config = valid(&format!("affinity = {written}\n{BACKENDS}"));
        assert_eq!(config.clusters[0].policy.affinity, affinity);
        assert_eq!(config.warnings, []);
    }
}

#[test]
fn what_is_no_affinity_is_refused() {
    for (written, allowed) in [
        ("{ dtls-cid = 0 }", "a whole number from 1 to 20"),
        ("{ offset = 1 }", "{ dtls-cid = LENGTH } or { offset = N, length = M }"),
        ("{ dtls-cid = 8, offset = 1, length = 1 }", "{ dtls-cid = LENGTH }"),
        ("{ offset = 1, length = 65 }", "a whole number from 1 to 64"),
        ("{ offset = 65507, length = 1 }", "a whole number from 0 to 65506"),
        ("{}", "{ dtls-cid = LENGTH }"),
        ("\"dtls-cid\"", "sip-call-id"),
    ] {
        let errors = errors(&format!("affinity = {written}\n{BACKENDS}"));
        assert!(errors.contains(allowed) && !errors.contains('\n'), "{errors}");
    }
}

#[test]
fn two_backends_on_one_host_do_not_go_with_host() {
    let errors = errors("affinity = \"host\"\nbackends = [\"10.0.0.1:1\", \"10.0.0.1:2\"]");
    assert!(errors.contains("10.0.0.1 has two"), "{errors}");
}

#[test]
fn a_key_that_nothing_looks_at_draws_a_warning() {
    for lines in [
        "affinity = \"sip-call-id\"\nbalance = \"random\"\n",
        "quic_lb = [{ rotation = 0, server_id_length = 2, nonce_length = 4 }]\n",
    ] {
        let config = valid(&format!("{lines}{BACKENDS}"));
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    }
}

fn quic_lb(more: &str) -> String {
    format!(
        "affinity = \"quic\"\n\
         backends = [{{ address = \"10.0.0.1:443\", server_id = \"0a0b\" }}, \"10.0.0.2:443\"]\n\
         [[cluster.web.quic_lb]]\nrotation = 3\nserver_id_length = 2\nnonce_length = 6\n{more}"
    )
}

#[test]
fn ids_without_encryption_are_read() {
    let config = valid(&quic_lb(""));
    let policy = &config.clusters[0].policy;
    assert_eq!(policy.backends[0].server_id.unwrap().as_ref(), [0x0a, 0x0b]);
    assert_eq!(policy.backends[1].server_id, None);
    let made = QuicLbConfig::new(3, 2, 6).unwrap();
    let id = made.encode(&[1, 2], &[0; 6], FirstOctet::Length).unwrap();
    assert_eq!(policy.quic_lb.0.decode(&id).unwrap().as_ref(), [1, 2]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let table = |rotation: &str, server: &str, nonce: &str| {
        format!(
            "affinity = \"quic\"\n{BACKENDS}[[cluster.web.quic_lb]]\nrotation = {rotation}\n\
             server_id_length = {server}\nnonce_length = {nonce}\n"
        )
    };
    for (cluster, says) in [
        (table("7", "8", "8"), "a whole number from 0 to 6"),
        (table("0", "16", "4"), "a whole number from 1 to 15"),
        (table("0", "8", "3"), "a whole number from 4 to 18"),
        (table("0", "8", "12"), "at most 19 bytes"),
        (format!("{}[[cluster.web.quic_lb]]\nrotation = 3\nserver_id_length = 2\nnonce_length = 6", quic_lb("")), "line 8 has it"),
        ("affinity = \"quic\"\nbackends = [{ address = \"10.0.0.1:1\", server_id = \"0\" }]".into(), "1 to 15 bytes in hexadecimal"),
        ("affinity = \"quic\"\nbackends = [{ address = \"10.0.0.1:1\", server_id = \"01\" }, { address = \"10.0.0.2:1\", server_id = \"01\" }]".into(), "a server_id of its own"),
        (quic_lb("").replace("0a0b", "0a"), "as long as server_id_length says"),
    ] {
        let errors = errors(&cluster);
        assert!(errors.contains(says), "{says}: {errors}");
    }
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("flowgate-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self, key: &Path) -> Result<Config, String> {
        let lines = quic_lb(&format!("key_file = {:?}\n", key.to_str().unwrap()));
        let path = self.write("flowgate.toml", text(&lines).as_bytes(), 0o600);
        flowgate_config::load(&path).map_err(|error| error.to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn keys_are_read_from_files_and_a_new_key_is_a_difference() {
    let folder = Folder::new("keys");
    let digits = b"8f95f09245765f80256934e50c66207f\n";
    let key: [u8; 16] = *b"sixteen byte key";
    let of_digits = folder.load(&folder.write("digits", digits, 0o600)).unwrap();
    let of_bytes = folder.load(&folder.write("bytes", &key, 0o640)).unwrap();
    let made = QuicLbConfig::new(3, 2, 6).unwrap().with_key(&key);
    let id = made.encode(&[7, 8], &[0; 6], FirstOctet::Length).unwrap();
    let read = |config: &Config| config.listeners[0].cluster.policy.quic_lb.0.decode(&id);
    assert_eq!(read(&of_bytes).unwrap().as_ref(), [7, 8]);
    assert_ne!(read(&of_digits), read(&of_bytes));

    let path = folder.write("key", digits, 0o600);
    let before = folder.load(&path).unwrap();
    folder.write("key", &key, 0o600);
    let after = folder.load(&path).unwrap();
    assert_eq!(before.difference_to(&after).clusters.changed, ["web"]);
    assert!(before.difference_to(&before.clone()).is_empty());
    let shown = format!("{after:?}");
    assert!(!shown.contains("sixteen") && !shown.contains("115, 105, 120"), "{shown}");
}

#[test]
fn a_key_that_others_can_use_or_that_is_none_is_refused_with_its_place() {
    let folder = Folder::new("refused-keys");
    let digits = b"8f95f09245765f80256934e50c66207f\n";
    for (path, says) in [
        (folder.write("open", digits, 0o644), "its mode is 644"),
        (folder.write("written", digits, 0o660), "its mode is 660"),
        (folder.write("short", &digits[..30], 0o600), "does not hold a key"),
        (folder.write("long", &[digits, &digits[..]].concat(), 0o600), "does not hold a key"),
        (folder.0.join("missing"), "cannot be read"),
        (folder.0.clone(), "is not a file"),
    ] {
        let error = folder.load(&path).expect_err("it is refused");
        assert!(error.contains(says), "{error}");
        assert!(error.contains("flowgate.toml:11:12: cluster.web.quic_lb[0].key_file"), "{error}");
        assert!(!error.contains("8f95"), "{error}");
    }
}

#[test]
fn a_call_is_a_flow_that_does_not_end_with_its_first_answer() {
    let config = valid(&format!("transactions = \"sip\"\n{BACKENDS}"));
    let policy = &config.clusters[0].policy;
    assert_eq!(policy.transactions, Some(Transactions::Sip));
    assert_eq!((policy.responses, policy.upstream), (0, UpstreamMode::Shared));
    let question = valid(&format!("transactions = \"stun\"\n{BACKENDS}"));
    assert_eq!(question.clusters[0].policy.responses, 1);
}

#[test]
fn one_worker_serves_a_listener_whose_backends_only_announce_ids() {
    let needs_one = |cluster: &str| {
        let config = valid(cluster);
        config.listeners[0].needs_one_worker(&config.clusters)
    };
    for affinity in ["\"wireguard\"", "{ dtls-cid = 8 }", "\"quic\""] {
        assert!(needs_one(&format!("affinity = {affinity}\n{BACKENDS}")), "{affinity}");
    }
    for affinity in ["\"source-ip\"", "\"host\"", "\"sip-call-id\"", "{ offset = 0, length = 4 }"] {
        assert!(!needs_one(&format!("affinity = {affinity}\n{BACKENDS}")), "{affinity}");
    }
    assert!(!needs_one(&quic_lb("")), "ids that can be read need nobody who has heard them");
    let route = "[[listener.route]]\nfrom = [\"10.0.0.0/8\"]\ncluster = \"gateways\"\n";
    let gateways = format!("[cluster.gateways]\naffinity = \"wireguard\"\n{BACKENDS}");
    let routed = format!("{BACKENDS}{gateways}");
    let text = text(&routed).replacen("[cluster.web]", &format!("{route}[cluster.web]"), 1);
    let config = parse(&text, "f.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let listener = config.listeners.iter().find(|l| l.routed_from.is_none()).unwrap();
    assert!(listener.needs_one_worker(&config.clusters), "a route's cluster counts");
}
