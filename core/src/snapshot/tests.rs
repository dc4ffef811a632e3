use std::format;
use std::string::ToString;

use alloc::vec::Vec;
use proptest::prelude::*;
use serde::Serialize;

use super::*;
use crate::UdpManager;
use crate::config::*;

mod everything;
mod fixture;
mod refused;

use everything::manager_with_everything;

/// Where the body begins.
const HEADER: usize = 26;

fn encoded() -> Vec<u8> {
    encode(&manager_with_everything().snapshot())
}

fn decode_manager(bytes: &[u8]) -> Result<ManagerSnapshot, SnapshotError> {
    decode(bytes)
}

/// Other bytes in the same envelope, which has their length and checksum.
fn rewrap(body: &[u8]) -> Vec<u8> {
    /// Bytes that postcard writes as they are.
    struct Raw<'a>(&'a [u8]);

    impl Serialize for Raw<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeTuple as _;
            let mut bytes = serializer.serialize_tuple(self.0.len())?;
            self.0.iter().try_for_each(|byte| bytes.serialize_element(byte))?;
            bytes.end()
        }
    }
    encode(&Raw(body))
}

#[test]
fn what_is_encoded_can_be_decoded() {
    let snapshot = manager_with_everything().snapshot();
    assert_eq!(decode_manager(&encode(&snapshot)), Ok(snapshot));
    assert_eq!(decode(&encode("text")), Ok("text".to_string()));
    assert_eq!(decode(&encode(&())), Ok(()));
}

#[test]
fn bytes_under_a_right_checksum_are_what_the_tests_say() {
    let encoded = encoded();
    assert_eq!(rewrap(&encoded[HEADER..]), encoded);
}

#[test]
fn a_bit_that_has_flipped_is_found() {
    let encoded = encoded();
    for index in 0..encoded.len() {
        for bit in 0..8 {
            let mut damaged = encoded.clone();
            damaged[index] ^= 1 << bit;
            let refused = decode_manager(&damaged).expect_err("damaged");
            let is_right = match index {
                0..8 => refused == SnapshotError::BadMagic,
                8..10 => matches!(
                    refused,
                    SnapshotError::TooNew { newest: VERSION, .. } | SnapshotError::TooOld { .. }
                ),
                10..18 => matches!(
                    refused,
                    SnapshotError::Truncated { .. } | SnapshotError::TooLong { .. }
                ),
                _ => refused == SnapshotError::ChecksumMismatch,
            };
            assert!(is_right, "bit {bit} of byte {index}: {refused:?}");
        }
    }
}

#[test]
fn whatever_is_cut_short_says_so() {
    let encoded = encoded();
    for found in 0..encoded.len() {
        let expected = if found < HEADER { HEADER } else { encoded.len() } as u64;
        let cut_short = SnapshotError::Truncated { expected, found: found as u64 };
        assert_eq!(decode_manager(&encoded[..found]), Err(cut_short));
    }
}

#[test]
fn what_follows_the_end_is_refused() {
    let mut encoded = encoded();
    encoded.extend(b"and more");
    assert_eq!(decode_manager(&encoded), Err(SnapshotError::TooLong { excess: 8 }));
}

#[test]
fn a_format_that_is_too_new_or_too_old_is_named_with_those_that_are_known() {
    let with_format = |format: u16| {
        let mut encoded = encoded();
        encoded[8..10].copy_from_slice(&format.to_le_bytes());
        // Whatever comes after the format may be another header.
        encoded.truncate(10);
        decode_manager(&encoded).expect_err("not today's format")
    };
    let too_new = with_format(VERSION + 1);
    assert_eq!(too_new, SnapshotError::TooNew { found: VERSION + 1, newest: VERSION });
    let says = format!(
        "the snapshot has format {}, and this version reads formats up to {VERSION}",
        VERSION + 1
    );
    assert_eq!(too_new.to_string(), says);
    let too_old = with_format(OLDEST_VERSION - 1);
    assert_eq!(
        too_old,
        SnapshotError::TooOld { found: OLDEST_VERSION - 1, oldest: OLDEST_VERSION }
    );
    let says = format!(
        "the snapshot has format {}, and this version reads formats from {OLDEST_VERSION} on",
        OLDEST_VERSION - 1
    );
    assert_eq!(too_old.to_string(), says);
}

#[test]
fn something_else_is_no_snapshot() {
    for bytes in [&b"[[listener]]"[..], b"f\0", b"flowgatf", &[0; 100]] {
        assert_eq!(decode_manager(bytes), Err(SnapshotError::BadMagic));
    }
}

#[test]
fn another_document_is_malformed() {
    for document in [rewrap(b""), encode(&0_u8), encode("text"), encode(&(encoded(), 1))] {
        assert_eq!(decode_manager(&document), Err(SnapshotError::Malformed));
    }
    let mut longer = encoded()[HEADER..].to_vec();
    longer.push(0);
    assert_eq!(decode_manager(&rewrap(&longer)), Err(SnapshotError::Malformed));
}

#[test]
fn a_length_that_is_a_lie_takes_no_memory() {
    // A list that says it has 2^63 elements.
    let endless = [&[0xFF; 8][..], &[0x7F]].concat();
    assert_eq!(decode::<Vec<u64>>(&rewrap(&endless)), Err(SnapshotError::Malformed));
    assert_eq!(decode::<Vec<[u64; 32]>>(&rewrap(&endless)), Err(SnapshotError::Malformed));
}

/// Whatever is restored must be sound, and able to go on.
fn go_on(snapshot: ManagerSnapshot) {
    // Such a table takes long to allocate, or to build.
    let config = snapshot.config();
    if config.max_flows > 1 << 12 || config.cluster.balance == Balance::Maglev {
        return;
    }
    let Ok(mut restored) = UdpManager::restore(snapshot.clone(), None) else { return };
    restored.assert_invariants();
    let mut again =
        UdpManager::restore(restored.snapshot(), None).expect("the snapshot of a manager");
    assert_eq!(again.snapshot(), restored.snapshot());
    everything::survive(restored);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn a_document_that_is_not_that_of_a_manager_is_refused_or_makes_a_sound_one(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        is_cut in any::<bool>(),
    ) {
        let mut body = encoded()[HEADER..].to_vec();
        for (index, value) in changes {
            let index = index.index(body.len());
            if is_cut {
                body.remove(index);
            } else {
                body[index] = value;
            }
        }
        if let Ok(snapshot) = decode_manager(&rewrap(&body)) {
            go_on(snapshot);
        }
    }

    #[test]
    fn anything_at_all_can_be_opened_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode_manager(&bytes);
        if let Ok(snapshot) = decode_manager(&rewrap(&bytes)) {
            go_on(snapshot);
        }
    }
}

#[test]
fn the_numbers_of_variants_are_part_of_the_format() {
    use crate::backend::Drain;
    use crate::flow::Stage;
    use parts::PathSnapshot as Path;
    fn numbers<T: Serialize>(variants: impl IntoIterator<Item = T>) -> Vec<u8> {
        let number = |variant| encode(&variant)[HEADER];
        variants.into_iter().map(number).collect()
    }
    let nobody = ReplyFrom::Nobody;
    let modes = [Mode::SESSION, Mode::OneWay, Mode::FanOut { reply_from: nobody }];
    let all = [
        numbers(modes),
        numbers([nobody, ReplyFrom::Chosen, ReplyFrom::First]),
        numbers([OnBackendDown::Pin, OnBackendDown::Rehash, OnBackendDown::Close]),
        numbers([Failback::NewFlows, Failback::All]),
        numbers([Balance::RoundRobin, Balance::Random, Balance::LeastFlows]),
        numbers([Affinity::SourceIp, Affinity::SourceIpPort]),
        numbers([SendProxyProtocol::Off, SendProxyProtocol::First, SendProxyProtocol::Every]),
        numbers([Drain::No, Drain::Until(None), Drain::Over]),
        numbers([Stage::Active, Stage::Follower, Stage::Retired]),
        numbers([
            Path::Direct { scope: 0 },
            Path::ToLocal { scope: 0, ip: [0; 4].into() },
            Path::Proxied { proxy: 0 },
        ]),
    ];
    for numbers in all {
        assert!(numbers.iter().copied().eq(0..numbers.len() as u8), "{numbers:?}");
    }
    let others = [Balance::PowerOfTwo, Balance::Rendezvous, Balance::Maglev];
    assert_eq!(numbers(others), [3, 4, 5]);
}

#[test]
fn an_address_is_written_down_whole() {
    #[derive(Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
    struct Both {
        #[serde(with = "address")]
        one: core::net::SocketAddr,
        #[serde(with = "address")]
        other: core::net::SocketAddr,
    }
    let v6 = |flow_label, scope| {
        core::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 53, flow_label, scope).into()
    };
    let both = Both { one: v6(0xF10, 3), other: "192.0.2.1:53".parse().unwrap() };
    assert_eq!(decode(&encode(&both)), Ok(both));
}

#[test]
fn the_same_order_of_sockets_is_told_before_and_after() {
    let mut manager = manager_with_everything();
    let snapshot = manager.snapshot();
    let ids: Vec<_> = snapshot.upstream_ids().collect();
    assert_eq!(ids.len(), manager.flow_count() + manager.quarantined(), "one for each flow");
    let restored =
        UdpManager::restore(snapshot, None).expect("the snapshot of a manager").snapshot();
    assert_eq!(restored.upstream_ids().collect::<Vec<_>>(), ids);
}
