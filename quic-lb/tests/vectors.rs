//! Ids that others have made: those of the draft, and those of Envoy 1.40.

use flowgate_quic_lb::{Decoder, FirstOctet, QuicLbConfig};

const KEY: &str = "8f95f09245765f80256934e50c66207f";

fn hex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2);
    digits.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// An id with the configuration that made it, and the server that it names.
struct Vector {
    id: &'static str,
    lengths: (usize, usize),
    is_encrypted: bool,
    server: &'static str,
}

const fn plain(id: &'static str, lengths: (usize, usize), server: &'static str) -> Vector {
    Vector { id, lengths, is_encrypted: false, server }
}

const fn encrypted(id: &'static str, lengths: (usize, usize), server: &'static str) -> Vector {
    Vector { id, lengths, is_encrypted: true, server }
}

/// Of the draft's appendix, but for its second without encryption, which does not follow from the
/// text.
const OF_THE_DRAFT: [Vector; 5] = [
    plain("07c4605e4504cc4f", (3, 4), "c4605e"),
    encrypted("0720b1d07b359d3c", (3, 4), "ed793a"),
    encrypted("2fcc381bc74cb4fbad2823a3d1f8fed2", (10, 5), "ed793a51d49b8f5fab65"),
    encrypted("504dd2d05a7b0de9b2b9907afb5ecf8cc3", (8, 8), "ed793a51d49b8f5f"),
    encrypted("125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc", (9, 9), "ed793a51d49b8f5fab"),
];

/// Envoy appends a byte of its own.
const OF_ENVOY: [Vector; 3] = [
    plain("0f01020304050607081d2481e543dc9e00", (8, 7), "0102030405060708"),
    encrypted("50a7b006278c558b48547202f4db14af1400", (8, 8), "ed793a51d49b8f5f"),
    encrypted("27f5910f0ae484d100", (3, 4), "ed793a"),
];

fn config(vector: &Vector) -> QuicLbConfig {
    let (server, nonce) = vector.lengths;
    let rotation = hex(vector.id)[0] >> 5;
    let config = QuicLbConfig::new(rotation, server, nonce).unwrap();
    if !vector.is_encrypted {
        return config;
    }
    config.with_key(&hex(KEY).try_into().unwrap())
}

#[test]
fn the_ids_of_others_are_read() {
    for vector in OF_THE_DRAFT.iter().chain(&OF_ENVOY) {
        let config = config(vector);
        let server = config.decode(&hex(vector.id)).unwrap();
        assert_eq!(*server, hex(vector.server), "{}", vector.id);
        let mut decoder = Decoder::default();
        assert!(decoder.is_empty() && decoder.insert(config).is_none());
        assert_eq!(decoder.decode(&hex(vector.id)), Some(server), "{}", vector.id);
    }
}

#[test]
fn the_same_ids_are_made_of_what_they_say() {
    for vector in &OF_THE_DRAFT {
        let config = config(vector);
        let id = hex(vector.id);
        let nonce = nonce_of(&config, &id, vector.server);
        let made = config.encode(&hex(vector.server), &nonce, FirstOctet::Length).unwrap();
        assert_eq!(*made, id, "{}", vector.id);
    }
}

/// The draft has one nonce for all its ids with encryption, as long as needed; without encryption
/// it is there to be read.
fn nonce_of(config: &QuicLbConfig, id: &[u8], server: &str) -> Vec<u8> {
    if config.is_encrypted() {
        hex("ee080dbf48c0d1e55dda")[..config.nonce_length()].to_vec()
    } else {
        id[1 + server.len() / 2..].to_vec()
    }
}
