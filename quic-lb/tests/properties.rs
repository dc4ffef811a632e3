//! What holds for every configuration, server id and nonce.

use flowgate_quic_lb::{ConfigError, Decoder, EncodeError, FirstOctet, QuicLbConfig, ServerId};
use proptest::collection::vec;
use proptest::prelude::*;

/// Lengths that go together.
fn lengths() -> impl Strategy<Value = (usize, usize)> {
    (1_usize..=15).prop_flat_map(|server| (Just(server), 4_usize..=19 - server))
}

fn configs() -> impl Strategy<Value = QuicLbConfig> {
    (0_u8..7, lengths(), any::<Option<[u8; 16]>>()).prop_map(|(rotation, (server, nonce), key)| {
        let config = QuicLbConfig::new(rotation, server, nonce).unwrap();
        key.iter().fold(config, QuicLbConfig::with_key)
    })
}

proptest! {
    #[test]
    fn what_is_made_is_read(
        config in configs(),
        (server, nonce) in (vec(any::<u8>(), 15), vec(any::<u8>(), 18)),
        bits in any::<Option<u8>>(),
        appended in vec(any::<u8>(), 0..30),
    ) {
        let (server, nonce) = (&server[..config.server_id_length()], &nonce[..config.nonce_length()]);
        let octet = bits.map_or(FirstOctet::Length, FirstOctet::Random);
        let id = config.encode(server, nonce, octet).unwrap();
        prop_assert_eq!(id.len(), config.connection_id_length());
        let low = bits.unwrap_or(id.len() as u8 - 1);
        prop_assert_eq!(id[0], config.rotation() << 5 | low & 0x1F);

        let mut decoder = Decoder::default();
        decoder.insert(config.clone());
        let mut datagram = id.to_vec();
        datagram.extend(appended);
        prop_assert_eq!(decoder.decode(&datagram), ServerId::new(server).ok());
        prop_assert_eq!(config.decode(&id[..id.len() - 1]), None);
        datagram[0] |= 0xE0;
        prop_assert_eq!(decoder.decode(&datagram), None);
    }

    #[test]
    fn different_nonces_make_different_ids(config in configs(), a in any::<u32>(), b in any::<u32>()) {
        let id = |nonce: u32| {
            let mut bytes = [0; 18];
            bytes[..4].copy_from_slice(&nonce.to_be_bytes());
            let server = [1; 15];
            let server = &server[..config.server_id_length()];
            config.encode(server, &bytes[..config.nonce_length()], FirstOctet::Length).unwrap()
        };
        prop_assert_eq!(id(a) == id(b), a == b);
    }

    #[test]
    fn no_bytes_are_too_strange_to_be_read(config in configs(), bytes in vec(any::<u8>(), 0..40)) {
        let mut decoder = Decoder::default();
        decoder.insert(config);
        if let Some(server) = decoder.decode(&bytes) {
            prop_assert!(!server.is_empty() && server.len() <= 15);
        }
    }
}

#[test]
fn what_the_draft_does_not_allow_is_refused() {
    let refused = [
        ((7, 8, 8), ConfigError::Rotation),
        ((0, 0, 8), ConfigError::ServerIdLength),
        ((0, 16, 4), ConfigError::ServerIdLength),
        ((0, 8, 3), ConfigError::NonceLength),
        ((0, 8, 12), ConfigError::Length),
        ((0, 1, usize::MAX), ConfigError::Length),
    ];
    for ((rotation, server, nonce), error) in refused {
        assert_eq!(QuicLbConfig::new(rotation, server, nonce), Err(error));
    }
    let config = QuicLbConfig::new(0, 2, 4).unwrap();
    let encode = |server: &[u8], nonce: &[u8]| config.encode(server, nonce, FirstOctet::Length);
    assert_eq!(encode(&[1], &[0; 4]).err(), Some(EncodeError::ServerIdLength));
    assert_eq!(encode(&[1, 2], &[0; 5]).err(), Some(EncodeError::NonceLength));
}

#[test]
fn a_key_is_not_shown() {
    let config = QuicLbConfig::new(0, 2, 4).unwrap().with_key(&[0xA5; 16]);
    let mut decoder = Decoder::default();
    decoder.insert(config.clone());
    for shown in [format!("{config:?}"), format!("{decoder:?}")] {
        assert!(!shown.contains("165") && !shown.to_lowercase().contains("a5"), "{shown}");
    }
}
