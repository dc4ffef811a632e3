//! Which index each backend has in the list that a listener's managers know.

use std::collections::HashMap;
use std::net::SocketAddr;

use flowgate_core::config::BackendConfig;

/// Gives each wanted backend an index beside `present`, the list so far.
///
/// A backend that stays keeps its index, since flows refer to it by that. One that is not wanted
/// any more keeps it too, marked as removed, until nothing refers to it: then `is_free` says so, and
/// a new one may have it. All other new ones go to the end.
pub fn assign(
    present: &[BackendConfig],
    wanted: &[BackendConfig],
    is_free: impl Fn(usize) -> bool,
) -> Vec<BackendConfig> {
    let by_address = |list: &[BackendConfig]| -> HashMap<SocketAddr, BackendConfig> {
        list.iter().map(|backend| (backend.address, *backend)).collect()
    };
    let (known, stay) = (by_address(present), by_address(wanted));
    let mut new = wanted.iter().filter(|b| !known.contains_key(&b.address)).copied();
    let mut backend_list = Vec::with_capacity(present.len().max(wanted.len()));
    for (index, &former) in present.iter().enumerate() {
        let stays = stay.get(&former.address).copied();
        let successor = || if former.removed && is_free(index) { new.next() } else { None };
        let removed = BackendConfig { removed: true, ..former };
        backend_list.push(stays.or_else(successor).unwrap_or(removed));
    }
    backend_list.extend(new);
    backend_list
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(numbers: &[u8]) -> Vec<BackendConfig> {
        let backend = |&n: &u8| BackendConfig::new(([10, 0, 0, n], 53).into());
        numbers.iter().map(backend).collect()
    }

    fn numbers(backend_list: &[BackendConfig]) -> Vec<(u8, bool)> {
        let last_octet = |address: SocketAddr| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("all are of IPv4"),
        };
        backend_list.iter().map(|b| (last_octet(b.address), b.removed)).collect()
    }

    #[test]
    fn who_stays_keeps_the_index_and_who_leaves_is_remembered() {
        let backend_list = assign(&backends(&[1, 2, 3]), &backends(&[3, 4, 1]), |_| true);
        assert_eq!(numbers(&backend_list), [(1, false), (2, true), (3, false), (4, false)]);
    }

    #[test]
    fn an_index_that_nothing_refers_to_is_given_away() {
        let before = assign(&backends(&[1, 2, 3]), &backends(&[3]), |_| true);
        let after = assign(&before, &backends(&[3, 4]), |index| index == 1);
        assert_eq!(numbers(&after), [(1, true), (4, false), (3, false)]);
    }

    #[test]
    fn a_backend_that_comes_back_finds_its_index() {
        let before = assign(&backends(&[1, 2]), &backends(&[2]), |_| true);
        let after = assign(&before, &backends(&[2, 1, 5]), |_| true);
        assert_eq!(numbers(&after), [(1, false), (2, false), (5, false)]);
    }

    #[test]
    fn what_is_said_of_a_backend_anew_holds() {
        let heavy = BackendConfig { weight: 7, ..backends(&[1])[0] };
        assert_eq!(assign(&backends(&[1]), &[heavy], |_| true), [heavy]);
    }

    proptest! {
        #[test]
        fn every_wanted_backend_has_one_index_and_no_other_is_in_service(
            steps in prop::collection::vec((prop::collection::btree_set(0_u8..12, 0..8), any::<u16>()), 1..12),
        ) {
            let mut backend_list = vec![];
            for (wanted, free) in steps {
                let wanted: Vec<u8> = wanted.into_iter().collect();
                let before = backend_list;
                backend_list = assign(&before, &backends(&wanted), |index| free & (1 << index) != 0);
                let in_service = backend_list.iter().filter(|b| !b.removed).copied().collect::<Vec<_>>();
                let mut found: Vec<u8> = numbers(&in_service).into_iter().map(|(n, _)| n).collect();
                found.sort_unstable();
                prop_assert_eq!(found, wanted);
                for (index, former) in before.iter().enumerate() {
                    let is_same = backend_list[index].address == former.address;
                    prop_assert!(is_same || former.removed && free & (1 << index) != 0);
                }
            }
        }
    }
}
