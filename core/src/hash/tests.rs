use core::net::SocketAddrV6;

use super::*;

fn client(address: &str, affinity: Affinity) -> u64 {
    ClientHash::new(address.parse().unwrap(), affinity).as_u64()
}

fn backend(address: &str) -> u64 {
    BackendHash::new(address.parse().unwrap()).as_u64()
}

#[test]
fn the_function_is_siphash_2_4() {
    // The last step of the worked example in appendix A of the SipHash paper.
    let key = core::array::from_fn(|i| i as u8);
    let message: [u8; 15] = core::array::from_fn(|i| i as u8);
    let hash = SipHasher24::new_with_key(&key).hash(&message);
    assert_eq!(hash, 0xA129_CA61_49BE_45E5);
}

/// Frozen. When one of these fails the code is wrong, not the number: changing them moves every
/// client of every installation. Computed by an implementation in another language.
#[test]
fn hashes_never_change() {
    use Affinity::{SourceIp, SourceIpPort};
    assert_eq!(client("192.0.2.1:4711", SourceIp), 0x4031_110A_9BA0_93CE);
    assert_eq!(client("192.0.2.1:4711", SourceIpPort), 0x5300_AD18_63D1_6ED2);
    assert_eq!(client("[2001:db8::1]:4711", SourceIp), 0x5DBE_D983_691C_F5D7);
    assert_eq!(client("[2001:db8::1]:4711", SourceIpPort), 0xFD4A_975E_649C_9F8C);
    assert_eq!(backend("10.0.0.1:53"), 0xF142_A50B_BCFE_D2A2);
    assert_eq!(backend("[2001:db8::53]:53"), 0xBAE9_E862_C2DB_69D6);
}

#[test]
fn the_port_counts_only_where_affinity_says_so() {
    let hashes = |affinity| ["192.0.2.1:1", "192.0.2.1:2"].map(|address| client(address, affinity));
    let [one, other] = hashes(Affinity::SourceIp);
    assert_eq!(one, other);
    let [one, other] = hashes(Affinity::SourceIpPort);
    assert_ne!(one, other);
}

#[test]
fn a_mapped_address_is_the_ipv4_address() {
    for affinity in [Affinity::SourceIp, Affinity::SourceIpPort] {
        assert_eq!(client("[::ffff:192.0.2.1]:4711", affinity), client("192.0.2.1:4711", affinity));
    }
    assert_eq!(backend("[::ffff:10.0.0.1]:53"), backend("10.0.0.1:53"));
}

#[test]
fn scope_and_flow_label_do_not_count() {
    let link_local = |flow_label, scope| {
        let address = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, flow_label, scope);
        BackendHash::new(address.into())
    };
    assert_eq!(link_local(0, 2), link_local(7, 3));
}

#[test]
fn a_client_and_a_backend_at_one_address_are_unrelated() {
    assert_ne!(client("10.0.0.1:53", Affinity::SourceIpPort), backend("10.0.0.1:53"));
}
