//! The presets: against servers that the test plays, and against real ones.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use flowgate::control::probe::preset::Preset;
use flowgate::control::probe::{ExpectedReply, ProbeMethod, ProbePayload, ProbeTarget};
use flowgate_core::probe::ProbeOutcome;
use flowgate_tests::resolver::dnsmasq;
use quinn::rustls::pki_types::PrivatePkcs8KeyDer;

use super::{Backend, LONG, Watch, target, unused};

fn ask(preset: Preset) -> ProbeMethod {
    ProbeMethod::Udp { send: ProbePayload::Preset(preset), expect: ExpectedReply::Any }
}

fn dns(question: &[u8]) -> Vec<u8> {
    [&question[..2], &[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], &question[12..]].concat()
}

fn ntp(question: &[u8]) -> Vec<u8> {
    [&[0x24, 2, 6, 0xe9][..], &[1; 20], &question[40..48], &[9; 16]].concat()
}

fn sip(question: &[u8]) -> Vec<u8> {
    let text = str::from_utf8(question).expect("text");
    let names = ["Via:", "From:", "To:", "Call-ID:", "CSeq:"];
    let is_copied = |line: &&str| names.iter().any(|name| line.starts_with(name));
    let headers: Vec<_> = text.split("\r\n").filter(is_copied).collect();
    format!("SIP/2.0 200 OK\r\n{}\r\nContent-Length: 0\r\n\r\n", headers.join("\r\n")).into_bytes()
}

fn quic(question: &[u8]) -> Vec<u8> {
    let ids = [&[8], &question[15..23], &[8], &question[6..14]].concat();
    [&[0x80, 0, 0, 0, 0][..], &ids, &[0, 0, 0, 1]].concat()
}

#[test]
fn each_preset_knows_its_servers() {
    type Server = fn(&[u8]) -> Vec<u8>;
    let servers: [(Preset, Server); 4] =
        [(Preset::Dns, dns), (Preset::Ntp, ntp), (Preset::Sip, sip), (Preset::Quic, quic)];
    for (preset, server) in servers {
        let backend = Backend::new();
        let target = target(backend.address(), ask(preset), LONG);
        let watch = Watch::start(vec![target]);
        backend.serve_many(10, server);
        watch.expect_none();
        // A server that merely echoes is none.
        backend.serve_until(&watch, (false, ProbeOutcome::WrongAnswer), <[u8]>::to_vec);
        backend.serve_until(&watch, (true, ProbeOutcome::Answered), server);
    }
}

#[test]
fn an_answer_must_please_the_preset_and_what_is_expected() {
    let backend = Backend::new();
    let expect = ExpectedReply::Begins(b"SIP/2.0 404".to_vec());
    let probe = ProbeMethod::Udp { send: ProbePayload::Preset(Preset::Sip), expect };
    let watch = Watch::start(vec![target(backend.address(), probe, LONG)]);
    backend.serve_until(&watch, (false, ProbeOutcome::WrongAnswer), sip);
    backend.serve_until(&watch, (true, ProbeOutcome::Answered), |question| {
        let answer = String::from_utf8(sip(question)).expect("text");
        answer.replace("200 OK", "404 Not Found").into_bytes()
    });
    let foreign = |_: &[u8]| b"SIP/2.0 404 Not Found\r\n\r\n".to_vec();
    backend.serve_until(&watch, (false, ProbeOutcome::WrongAnswer), foreign);
}

#[test]
fn the_answer_to_a_former_probe_does_not_count() {
    let backend = Backend::new();
    let watch = Watch::start(vec![target(backend.address(), ask(Preset::Dns), LONG)]);
    let former = Cell::new([0; 2]);
    backend.serve_until(&watch, (false, ProbeOutcome::WrongAnswer), |question| {
        let id = former.replace([question[0], question[1]]);
        [&id, &dns(question)[2..]].concat()
    });
}

/// Takes the target at a port that nobody has down, then leads its probes to `address`, and waits
/// until it is up.
fn comes_up_at(address: SocketAddr, preset: Preset) {
    let closed = target(unused(), ask(preset), LONG);
    let watch = Watch::start(vec![closed.clone()]);
    watch.expect(&closed.key, false, ProbeOutcome::Refused);
    watch.prober.set_targets(vec![ProbeTarget { address, ..closed.clone() }]);
    watch.expect(&closed.key, true, ProbeOutcome::Answered);
}

#[tokio::test]
async fn a_real_quic_server_is_up() {
    let certified = rcgen::generate_simple_self_signed(["test".to_owned()]).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let certificates = vec![certified.cert.der().clone()];
    let config = quinn::ServerConfig::with_single_cert(certificates, key.into()).expect("valid");
    let server = quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(config),
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket"),
        Arc::new(quinn::TokioRuntime),
    );
    let address = server.as_ref().expect("a server").local_addr().expect("an address");
    let watched = tokio::task::spawn_blocking(move || comes_up_at(address, Preset::Quic));
    watched.await.expect("it comes up");
}

#[test]
fn a_real_dns_server_is_up() {
    if let Some(server) = dnsmasq(std::iter::empty()) {
        comes_up_at(server.address(), Preset::Dns);
    }
}
