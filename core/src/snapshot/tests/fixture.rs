//! Snapshots of former formats, and of today's.

use std::path::{Path, PathBuf};
use std::{fs, println};

use super::everything::{after, client};
use super::*;
use crate::backend::BackendState;
use crate::{BackendId, CloseReason, Direction, DropReason};

fn fixture(format: u16) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/snapshot/fixtures");
    folder.join(format!("format-{format}"))
}

fn committed(format: u16) -> Vec<u8> {
    let path = fixture(format);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `cargo test -p flowgate-core --lib writes_the_fixture -- --ignored`: once for each format, when
/// nothing more is to change in it. Anyone who has a snapshot of that format may want it read.
#[test]
#[ignore = "writes into the source tree"]
fn writes_the_fixture_of_todays_format() {
    let path = fixture(VERSION);
    fs::write(&path, encoded()).unwrap();
    println!("{} was written", path.display());
}

#[test]
fn the_fixture_of_every_format_can_be_read() {
    for format in OLDEST_VERSION..=VERSION {
        let bytes = committed(format);
        assert_eq!(bytes[8..10], format.to_le_bytes());
        let snapshot = decode_manager(&bytes).unwrap_or_else(|error| {
            panic!("format {format}: {error}. If documents have changed, VERSION has to grow")
        });
        let mut restored =
            UdpManager::restore(snapshot.clone(), None).expect("the snapshot of a manager");
        restored.assert_invariants();
        assert_eq!(restored.snapshot(), snapshot);
    }
}

#[test]
fn the_fixture_of_todays_format_would_be_written_the_same() {
    let bytes = committed(VERSION);
    let snapshot = decode_manager(&bytes).expect("a snapshot of today's format");
    assert_eq!(encode(&snapshot), bytes, "what is written is another format: VERSION has to grow");
}

#[test]
fn the_fixture_holds_what_was_put_into_it() {
    let snapshot = decode_manager(&committed(VERSION)).expect("a snapshot of today's format");
    assert_eq!(snapshot.config().address, "[fe80::53%2]:53".parse().unwrap());
    let manager = UdpManager::restore(snapshot, None).expect("the snapshot of a manager");
    let flow_of = |number| {
        let mut flows = manager.flows().map(|(_, flow)| flow);
        flows.find(|flow| flow.client() == client(number)).expect("its flow")
    };
    assert!(flow_of(11).is_retired() && flow_of(11).is_confirmed());
    assert_eq!(flow_of(30).local().unwrap().ip, core::net::IpAddr::from([192, 0, 2, 53]));
    assert_eq!(flow_of(13).to_client(), crate::counters::Traffic { datagrams: 1, bytes: 6 });
    assert_eq!(flow_of(13).deadline(), after(21 + 60_000));
    assert_eq!(flow_of(18).deadline(), after(20 + 20_000), "not answered");
    assert_eq!(manager.flow_count(), 17);
    assert!(manager.quarantined() > 0);

    let state = |index| manager.backends().get(BackendId::new(index)).unwrap().state();
    assert_eq!([0, 1, 2, 3].map(state), {
        use BackendState::{Down, Draining, Ejected, Up};
        [Ejected, Up, Draining, Down]
    });
    assert!(manager.backends().get(BackendId::new(5)).unwrap().is_removed());
    let counters = manager.counters();
    assert_eq!(counters.closed(CloseReason::UpstreamFailed), 4);
    for reason in [DropReason::TooLarge, DropReason::Denied] {
        assert!(counters.ledger(Direction::ToBackend).dropped_for(reason).datagrams > 0);
    }
    assert_eq!(manager.poll_timeout().unwrap().at, after(3_840), "the first timer");
}
