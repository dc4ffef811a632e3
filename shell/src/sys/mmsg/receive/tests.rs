use super::*;

fn arrival(bytes: &[u8]) -> Arrival<'_> {
    Arrival {
        bytes,
        source: "192.0.2.1:7".parse().unwrap(),
        local: None,
        tos: 0,
        segment: 0,
        is_truncated: false,
        is_control_truncated: false,
    }
}

#[test]
fn what_was_received_stays_while_more_is() {
    let mut arena = Arena::new(3);
    let mut turn = arena.begin();
    let mut all = vec![];
    for bytes in [b"first" as &[u8], b"", b"third"] {
        all.extend(
            turn.receive(1, |slots| {
                slots.fill(0, &arrival(bytes), false);
                Ok(1)
            })
            .unwrap(),
        );
    }
    assert_eq!(turn.free(), 0);
    assert_eq!(all.iter().map(|r| r.bytes).collect::<Vec<_>>(), [b"first" as &[u8], b"", b"third"]);
    assert!(all.iter().all(|r| r.source == Some("192.0.2.1:7".parse().unwrap())));
}

#[test]
fn a_full_arena_receives_nothing() {
    let mut arena = Arena::new(1);
    let mut turn = arena.begin();
    for expected in [1, 0] {
        let received = turn.receive(5, |slots| {
            slots.fill(0, &arrival(b"x"), false);
            Ok(5)
        });
        assert_eq!(received.unwrap().len(), expected);
    }
}

#[test]
fn each_turn_begins_with_fresh_headers() {
    let mut arena = Arena::new(1);
    let lengths = [9, 65_535, 0];
    for len in lengths {
        let payload = vec![7; len];
        let received: Vec<_> = arena
            .begin()
            .receive(1, |slots| {
                slots.fill(0, &arrival(&payload), true);
                Ok(1)
            })
            .unwrap()
            .map(|r| r.bytes.len())
            .collect();
        assert_eq!(received, [len]);
    }
}

#[test]
fn a_failed_receive_takes_no_slot() {
    let mut arena = Arena::new(1);
    let mut turn = arena.begin();
    assert!(turn.receive(1, |_| Err(io::ErrorKind::WouldBlock.into())).is_err());
    assert_eq!(turn.free(), 1);
}

#[test]
fn real_datagrams_arrive_with_source_and_address() {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
    crate::sys::sockopt::set_receive_local_address(listener.as_fd(), false).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for payload in [b"one" as &[u8], b"", b"three"] {
        client.send_to(payload, listener.local_addr().unwrap()).unwrap();
    }
    let mut arena = Arena::new(8);
    let mut turn = arena.begin();
    let received: Vec<_> =
        turn.receive(8, |slots| slots.receive_from(listener.as_fd())).unwrap().collect();
    assert_eq!(
        received.iter().map(|r| r.bytes).collect::<Vec<_>>(),
        [b"one" as &[u8], b"", b"three"]
    );
    for datagram in received {
        assert_eq!(datagram.source, client.local_addr().ok());
        let local = LocalAddr { ip: [127, 0, 0, 1].into(), interface: 0 };
        assert_eq!(datagram.control.local, Some(local));
    }
    let empty = turn.receive(1, |slots| slots.receive_from(listener.as_fd())).err().unwrap();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
}
