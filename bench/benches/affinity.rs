//! What it costs to find the key of a datagram: nanoseconds for each, one extractor after the other.
//!
//! `cargo bench -p flowgate-bench --bench affinity`. Keys are looked for where a flow is opened, not
//! for every datagram. The ids of transactions, which are for every one, are here too.

use std::hint::black_box;

use divan::counter::ItemsCount;
use divan::{Bencher, Divan};
use flowgate_core::Transactions;
use flowgate_core::affinity::{Affinity, Found};
use flowgate_quic_lb::{Decoder, FirstOctet, QuicLbConfig, ServerId};

/// Datagrams in one sample, so that reading the clock does not count.
const DATAGRAMS: usize = 1_024;

fn main() {
    Divan::from_args().main();
}

/// Measures one extractor on one datagram, in which it has to find something.
fn read(bencher: Bencher, affinity: Affinity, datagram: &[u8]) {
    assert_ne!(affinity.read(datagram), Found::Nothing);
    repeat(bencher, || {
        black_box(black_box(affinity).read(black_box(datagram)));
    });
}

/// The same of what servers announce.
fn announced(bencher: Bencher, affinity: Affinity, datagram: &[u8]) {
    assert!(affinity.announced(datagram).is_some());
    repeat(bencher, || {
        black_box(black_box(affinity).announced(black_box(datagram)));
    });
}

fn repeat(bencher: Bencher, mut once: impl FnMut()) {
    bencher.counter(ItemsCount::new(DATAGRAMS)).bench_local(|| {
        for _ in 0..DATAGRAMS {
            once();
        }
    });
}

#[divan::bench]
fn quic_short_header(bencher: Bencher) {
    read(bencher, Affinity::Quic, &[0x4F; 1_200]);
}

#[divan::bench]
fn quic_first_flight(bencher: Bencher) {
    read(bencher, Affinity::Quic, &quic_initial());
}

#[divan::bench]
fn quic_announced(bencher: Bencher) {
    announced(bencher, Affinity::Quic, &quic_initial());
}

/// Version 1, both ids of 8 bytes.
fn quic_initial() -> Vec<u8> {
    let mut datagram = b"\xC0\0\0\0\x01\x08abcdefgh\x08ijklmnop".to_vec();
    datagram.resize(1_200, 0);
    datagram
}

#[divan::bench]
fn wireguard_data(bencher: Bencher) {
    let mut datagram = [9; 1_452];
    datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
    read(bencher, Affinity::WireGuard, &datagram);
}

#[divan::bench]
fn wireguard_announced(bencher: Bencher) {
    let mut datagram = [9; 92];
    datagram[..4].copy_from_slice(&[2, 0, 0, 0]);
    announced(bencher, Affinity::WireGuard, &datagram);
}

#[divan::bench]
fn dtls_record_with_an_id(bencher: Bencher) {
    read(bencher, Affinity::DtlsCid { length: 8 }, &[25; 200]);
}

/// A ServerHello whose last of a dozen extensions has the id.
#[divan::bench]
fn dtls_announced(bencher: Bencher) {
    let mut extensions: Vec<u8> = (0..11).flat_map(|kind| [0, kind, 0, 2, 1, 1]).collect();
    extensions.extend(b"\0\x36\0\x09\x08abcdefgh");
    let mut datagram = vec![22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 1, 0, 200];
    datagram.extend([2, 0, 0, 150, 0, 1, 0, 0, 0, 0, 0, 150, 0xFE, 0xFD]);
    datagram.extend([7; 32]);
    datagram.extend([0, 0xC0, 0xA8, 0, 0, extensions.len() as u8]);
    datagram.extend(extensions);
    announced(bencher, Affinity::DtlsCid { length: 8 }, &datagram);
}

/// The Call-ID is in the seventh line, as in the INVITE of RFC 3261, section 24.2.
const SIP_INVITE: &[u8] = b"INVITE sip:bob@biloxi.example.com SIP/2.0\r\n\
    Via: SIP/2.0/UDP bigbox3.site3.atlanta.example.com;branch=z9hG4bK77ef4c2312983.1\r\n\
    Via: SIP/2.0/UDP pc33.atlanta.example.com;branch=z9hG4bKnashds8;received=192.0.2.1\r\n\
    Max-Forwards: 69\r\n\
    To: Bob <sip:bob@biloxi.example.com>\r\n\
    From: Alice <sip:alice@atlanta.example.com>;tag=1928301774\r\n\
    Call-ID: a84b4c76e66710\r\n\
    CSeq: 314159 INVITE\r\n\
    Contact: <sip:alice@pc33.atlanta.example.com>\r\n\r\n";

#[divan::bench]
fn sip_invite(bencher: Bencher) {
    read(bencher, Affinity::SipCallId, SIP_INVITE);
}

#[divan::bench]
fn offset(bencher: Bencher) {
    read(bencher, Affinity::Offset { offset: 100, length: 8 }, &[7; 200]);
}

#[divan::bench]
fn quic_lb_unencrypted(bencher: Bencher) {
    decode(bencher, 8, 8, false);
}

/// Server id and nonce fill one block of AES.
#[divan::bench]
fn quic_lb_one_pass(bencher: Bencher) {
    decode(bencher, 8, 8, true);
}

/// The Feistel network of whatever is shorter or longer than one block.
#[divan::bench]
fn quic_lb_four_pass(bencher: Bencher) {
    decode(bencher, 9, 10, true);
}

fn decode(bencher: Bencher, server_id: usize, nonce: usize, is_encrypted: bool) {
    let config = QuicLbConfig::new(0, server_id, nonce).expect("lengths that may be");
    let config = if is_encrypted { config.with_key(&[7; 16]) } else { config };
    let mut decoder = Decoder::default();
    let server = ServerId::new(&vec![3; server_id]).expect("short enough");
    let id = config.encode(&server, &vec![5; nonce], FirstOctet::Length).expect("it fits");
    decoder.insert(config);
    assert_eq!(decoder.decode(&id), Some(server));
    repeat(bencher, || {
        black_box(decoder.decode(black_box(&id)));
    });
}

#[divan::bench]
fn transaction_dns(bencher: Bencher) {
    let question = b"\x1d\xd3\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
    transaction(bencher, Transactions::Dns, question);
}

#[divan::bench]
fn transaction_ntp(bencher: Bencher) {
    transaction(bencher, Transactions::Ntp, &[0x23; 48]);
}

#[divan::bench]
fn transaction_stun(bencher: Bencher) {
    transaction(bencher, Transactions::Stun, b"\0\x01\0\0\x21\x12\xa4\x42abcdefghijkl");
}

#[divan::bench]
fn transaction_sip(bencher: Bencher) {
    transaction(bencher, Transactions::Sip, SIP_INVITE);
}

fn transaction(bencher: Bencher, transactions: Transactions, question: &[u8]) {
    assert!(transactions.request_id(question).is_some());
    repeat(bencher, || {
        black_box(black_box(transactions).request_id(black_box(question)));
    });
}
