//! Packets, pieces and descriptors arrive as they were sent, or it is said why not.

use std::net::UdpSocket;
use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(20);

fn pair() -> (Channel, Channel) {
    Channel::pair().unwrap()
}

#[test]
fn what_is_said_is_heard() {
    let (old, new) = pair();
    let refusal = FromNew::Refused { reasons: vec!["a".into(), "b\n".into()] };
    new.send(&refusal, &IoDeadline::after(LONG)).unwrap();
    assert_eq!(old.receive::<FromNew>(&IoDeadline::after(LONG)).unwrap(), refusal);
}

/// A process that was paused finds its deadline over and the word there.
#[test]
fn what_was_said_in_time_is_heard_by_one_that_listens_late() {
    let (old, new) = pair();
    let deadline = IoDeadline::after(Duration::from_millis(1));
    new.send(&FromNew::Serving, &IoDeadline::after(LONG)).unwrap();
    thread::sleep(SHORT);
    assert!(deadline.left().is_err());
    assert_eq!(old.receive::<FromNew>(&deadline).unwrap(), FromNew::Serving);
    assert!(matches!(old.receive::<FromNew>(&deadline), Err(ChannelError::TimedOut)));
}

#[test]
fn words_on_the_wire_stay_what_they_are_between_versions() {
    let word = |message: &FromNew| serde_json::to_string(message).unwrap();
    assert_eq!(word(&FromNew::Staged), "{\"word\":\"holding\"}");
    assert_eq!(serde_json::to_string(&FromOld::Commit).unwrap(), "{\"word\":\"yours\"}");
}

#[test]
fn the_maker_of_a_channel_is_known() {
    assert_eq!(pair().1.maker(), Some(std::process::id()));
}

#[test]
fn a_snapshot_of_any_size_arrives_whole() {
    for size in [0, 1, PACKET - 1, PACKET, PACKET + 1, 5_000_000] {
        let (old, new) = pair();
        let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let sender = thread::spawn(move || old.send_bytes(&copy, &IoDeadline::after(LONG)));
        let received = new.receive_bytes(size as u64, &IoDeadline::after(LONG)).unwrap();
        assert!(received == sent, "{size} bytes");
        sender.join().unwrap().unwrap();
    }
}

#[test]
fn descriptors_arrive_in_their_order() {
    let (old, new) = pair();
    let sockets: Vec<_> = (0..600).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let ports = |port: &UdpSocket| port.local_addr().unwrap().port();
    let sent: Vec<_> = sockets.iter().map(ports).collect();
    let sender = thread::spawn(move || {
        let all: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        old.send_descriptors(&all, &IoDeadline::after(LONG))
    });
    let mut received = Vec::new();
    new.receive_descriptors(600, &mut received, &IoDeadline::after(LONG)).unwrap();
    sender.join().unwrap().unwrap();
    let received: Vec<_> = received.into_iter().map(|fd| ports(&fd.into())).collect();
    assert_eq!(received, sent);
}

#[test]
fn those_that_came_before_the_end_are_there() {
    let (old, new) = pair();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    old.send_descriptors(&[socket.as_fd()], &IoDeadline::after(LONG)).unwrap();
    drop(old);
    let mut received = Vec::new();
    let outcome = new.receive_descriptors(2, &mut received, &IoDeadline::after(LONG));
    assert!(matches!(outcome, Err(ChannelError::Ended)), "{outcome:?}");
    assert_eq!(received.len(), 1);
}

#[test]
fn the_other_end_may_be_closed_silent_or_out_of_step() {
    let (old, new) = pair();
    let heard = old.receive::<FromNew>(&IoDeadline::after(SHORT));
    assert!(matches!(heard, Err(ChannelError::TimedOut)), "{heard:?}");
    let flood = old.send_bytes(&[0; 50_000_000], &IoDeadline::after(SHORT));
    assert!(matches!(flood, Err(ChannelError::TimedOut)), "{flood:?}");
    new.send(&FromOld::Commit, &IoDeadline::after(LONG)).unwrap();
    let heard = old.receive::<FromNew>(&IoDeadline::after(LONG));
    assert!(matches!(heard, Err(ChannelError::Nonsense(_))), "{heard:?}");
    let heard = old.receive_bytes(MAX_SNAPSHOT_LEN + 1, &IoDeadline::after(LONG));
    assert!(matches!(heard, Err(ChannelError::Nonsense(_))), "{heard:?}");
    drop(new);
    let heard = old.receive::<FromNew>(&IoDeadline::after(LONG));
    assert!(matches!(heard, Err(ChannelError::Ended)), "{heard:?}");
}

#[test]
fn only_a_unix_socket_of_packets_is_a_channel() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(Channel::from_descriptor(socket.into()).is_err());
    let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(Channel::from_descriptor(stream.into()).is_err());
}
