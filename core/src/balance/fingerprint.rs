//! One number for all that decides where a cluster places its clients.

use alloc::vec::Vec;

use siphasher::sip::SipHasher24;

use crate::config::{Affinity, BackendConfig, Balance, Mode, ReplyFrom};
use crate::hash::BackendHash;

/// Which placement it stands for: another number where the same configuration places otherwise.
const VERSION: u8 = 1;

const KEY: &[u8; 16] = b"flowgate cluster";

/// How many bits it has: a floating-point number holds them all, as metrics are.
const BITS: u32 = 52;

/// A number that two instances share as long as both place clients alike: it stands for the set of
/// backends with their weights, whatever their order, and for mode, balance and affinity. Which of
/// them are in service right now does not count, nor do limits and timeouts.
///
/// It is frozen, as [the hash](crate::hash) is.
pub fn fingerprint(
    mode: Mode,
    balance: Balance,
    affinity: Affinity,
    backends: &[BackendConfig],
) -> u64 {
    let mut bytes = Vec::with_capacity(32 + 32 * backends.len());
    bytes.extend([VERSION, number_of_mode(mode)]);
    bytes.extend(balance.as_str().as_bytes());
    bytes.push(0);
    append_affinity(affinity, &mut bytes);
    let mut members: Vec<(u64, &BackendConfig)> = backends
        .iter()
        .filter(|backend| !backend.removed)
        .map(|backend| (BackendHash::new(backend.address).as_u64(), backend))
        .collect();
    members.sort_unstable_by_key(|(hash, _)| *hash);
    for (hash, backend) in members {
        bytes.extend(hash.to_be_bytes());
        bytes.extend(backend.weight.to_be_bytes());
        bytes.extend([u8::from(backend.backup), u8::from(backend.answers)]);
        let id = backend.server_id.as_ref().map_or(&[][..], |id| id.as_ref());
        bytes.push(id.len() as u8);
        bytes.extend(id);
    }
    SipHasher24::new_with_key(KEY).hash(&bytes) >> (u64::BITS - BITS)
}

const fn number_of_mode(mode: Mode) -> u8 {
    match mode {
        // Whether there is a mirror moves nobody.
        Mode::Session { .. } => 0,
        Mode::OneWay => 1,
        Mode::FanOut { reply_from: ReplyFrom::Nobody } => 2,
        Mode::FanOut { reply_from: ReplyFrom::Chosen } => 3,
        Mode::FanOut { reply_from: ReplyFrom::First } => 4,
    }
}

fn append_affinity(affinity: Affinity, bytes: &mut Vec<u8>) {
    match affinity {
        Affinity::SourceIp => bytes.push(0),
        Affinity::SourceIpPort => bytes.push(1),
        Affinity::Host => bytes.push(2),
        Affinity::Quic => bytes.push(3),
        Affinity::WireGuard => bytes.push(4),
        Affinity::SipCallId => bytes.push(5),
        Affinity::DtlsCid { length } => bytes.extend([6, length]),
        Affinity::Offset { offset, length } => {
            bytes.push(7);
            bytes.extend(offset.to_be_bytes());
            bytes.push(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Balance;

    const TWO: [&str; 2] = ["10.0.0.1:53", "[2001:db8::1]:53"];

    fn backends(addresses: &[&str]) -> Vec<BackendConfig> {
        addresses.iter().map(|address| BackendConfig::new(address.parse().unwrap())).collect()
    }

    fn of_backends(backends: &[BackendConfig]) -> u64 {
        fingerprint(Mode::SESSION, Balance::Rendezvous, Affinity::SourceIp, backends)
    }

    fn changed(change: impl FnOnce(&mut BackendConfig)) -> u64 {
        let mut backends = backends(&TWO);
        change(&mut backends[0]);
        of_backends(&backends)
    }

    #[test]
    fn it_is_frozen_and_fits_into_a_float() {
        let found = of_backends(&backends(&TWO));
        assert_eq!(found, 805588637558818);
        assert!(found < 1 << BITS && found as f64 as u64 == found);
    }

    #[test]
    fn order_spelling_limits_and_what_is_removed_do_not_count() {
        let same = of_backends(&backends(&TWO));
        assert_eq!(of_backends(&backends(&[TWO[1], TWO[0]])), same);
        assert_eq!(of_backends(&backends(&[TWO[1], "[::ffff:10.0.0.1]:53"])), same);
        assert_eq!(changed(|backend| backend.max_flows = 7), same);
        let mut more = backends(&[TWO[0], TWO[1], "10.0.0.9:53"]);
        more[2].removed = true;
        assert_eq!(of_backends(&more), same);
    }

    #[test]
    fn whatever_moves_clients_counts() {
        let of = |mode, balance, affinity| fingerprint(mode, balance, affinity, &backends(&TWO));
        let mut all = alloc::vec![
            of_backends(&backends(&TWO)),
            of_backends(&backends(&TWO[..1])),
            of_backends(&backends(&["10.0.0.1:53", "[2001:db8::1]:54"])),
            of_backends(&[]),
            of(Mode::SESSION, Balance::Maglev, Affinity::SourceIp),
            of(Mode::OneWay, Balance::Rendezvous, Affinity::SourceIp),
            of(Mode::SESSION, Balance::Rendezvous, Affinity::SourceIpPort),
            of(Mode::SESSION, Balance::Rendezvous, Affinity::Offset { offset: 1, length: 2 }),
            of(Mode::SESSION, Balance::Rendezvous, Affinity::Offset { offset: 2, length: 2 }),
            changed(|backend| backend.weight = 2),
            changed(|backend| backend.backup = true),
            changed(|backend| backend.answers = false),
            changed(|backend| backend.server_id = crate::config::ServerId::new(&[1]).ok()),
        ];
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
