//! Recordings and captures of anybody, read and played.

use flowgate::recording::capture::CaptureReader;
use flowgate::recording::codec::InputPiece;
use flowgate::recording::file::{
    RecordingBlock, RecordingReader, RecordingStart, StartState, preamble,
};
use flowgate::recording::player::Player;
use flowgate_core::{Instant, UdpManager};

const CONFIG: &str = "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
                      [cluster.c]\nresponses = 1\nbackends = [\"10.0.0.1:53\", \"10.0.0.2:53\"]\n";

fn start(state: impl FnOnce(UdpManager) -> StartState) -> RecordingBlock {
    let config = flowgate_config::parse(CONFIG, "fuzz.toml").expect("a configuration");
    let listener = &config.listeners[0];
    let backends = listener.cluster.backends(|_| Vec::new());
    let config = listener.manager_config(listener.address, 50, Vec::new(), false, backends);
    let state = state(UdpManager::new(config, 1, Instant::ORIGIN));
    let (listener, cluster) = ("dns".to_owned(), "c".to_owned());
    RecordingBlock::Start(0, Box::new(RecordingStart { listener, cluster, state }))
}

/// Bytes are a recording or none; and as the inputs of a block whose checksum is right they are
/// played, or refused, whatever they are.
pub fn recording(data: &[u8]) {
    read(data, Player::as_recorded());
    read(&[&preamble()[..], data].concat(), Player::as_recorded());
    let inputs = || RecordingBlock::Inputs {
        shard: 0,
        piece: InputPiece { bytes: data.to_vec(), inputs: 0, is_fresh: true },
        outputs: 0,
    };
    let whole = start(|manager| StartState::Whole(manager.clone().snapshot()));
    let config = start(|manager| StartState::Config(manager.config().clone()));
    for (start, player) in [(whole, Player::as_recorded()), (config, Player::with(None))] {
        let bytes = [preamble(), start.to_bytes(), inputs().to_bytes()].concat();
        read(&bytes, player);
    }
}

fn read(bytes: &[u8], mut player: Player<'_>) {
    let Ok(mut reader) = RecordingReader::new(bytes) else { return };
    while let Ok(Some(block)) = reader.next_block() {
        if player.play(block).is_err() {
            break;
        }
    }
    player.report();
}

/// Bytes are a capture or none, and each of its datagrams lies within it.
pub fn capture(data: &[u8]) {
    let Ok(mut reader) = CaptureReader::new(data) else { return };
    let mut all = 0;
    while let Ok(Some(datagram)) = reader.next_datagram() {
        assert!(datagram.bytes.len() <= usize::from(datagram.len));
        let _ = datagram.as_input("192.0.2.1:53".parse().expect("an address"), 0);
        all += 1;
    }
    assert!(all <= data.len(), "a datagram takes room");
}
