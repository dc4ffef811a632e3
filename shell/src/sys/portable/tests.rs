use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use super::*;
use crate::sys::arena::Arena;
use crate::sys::clock::Clock;
use crate::sys::fd::OwnedFd;

fn socket(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn over(socket: &UdpSocket, v6: bool) -> Datagrams {
    socket.set_nonblocking(true).unwrap();
    Datagrams::new(OwnedFd::from(socket.try_clone().unwrap()), v6, None).unwrap()
}

/// Receives until nothing has come for a while; what arrives on loopback is there at once.
fn receive(datagrams: &Datagrams, count: usize) -> Vec<(Vec<u8>, RecvMeta)> {
    let (mut arena, calls) = (Arena::new(128), Calls::new().unwrap());
    let (mut all, clock) = (Vec::new(), Clock::start());
    while all.len() < count && clock.uptime() < Duration::from_secs(20) {
        let mut tick = arena.begin();
        match tick.receive(128, |slots| datagrams.receive(&calls, slots)) {
            Ok(received) => all.extend(received.map(|r| (r.bytes.to_vec(), *r.meta))),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    all
}

fn message(to: SocketAddr, pieces: usize) -> Message {
    Message {
        pieces: 0..pieces,
        destination: Some(to),
        local: None,
        source: None,
        tos: 0,
        ttl: None,
        segment: 0,
    }
}

#[test]
fn more_than_one_call_takes_is_received_at_once() {
    let ((sender, from), (receiver, to)) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let datagrams = over(&receiver, false);
    for number in 0..100_u8 {
        sender.send_to(&[number], to).unwrap();
    }
    let received = receive(&datagrams, 100);
    let numbers: Vec<u8> = received.iter().map(|(bytes, _)| bytes[0]).collect();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    assert!(received.iter().all(|(_, meta)| meta.source == Some(from) && meta.local.is_none()));
}

#[test]
fn of_the_tos_byte_the_ecn_bits_pass_and_the_rest_does_not() {
    for (address, v6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
        let ((sender, _), (receiver, to)) = (socket(address), socket(address));
        let [sending, receiving] = [&sender, &receiver].map(|socket| over(socket, v6));
        for tos in [0, 1, 2, 3, 0xB8, 0xBB] {
            let pieces = [IoSlice::new(b"to"), IoSlice::new(b"gether")];
            let messages = [Message { tos, ttl: Some(9), ..message(to, 2) }];
            let batch = Batch { pieces: &pieces, messages: &messages };
            assert_eq!(sending.send(&mut Calls::new().unwrap(), batch).unwrap(), 1);
            let received = receive(&receiving, 1);
            assert_eq!((&received[0].0[..], received[0].1.tos), (&b"together"[..], tos & ECN));
        }
        let ttl = socket2::SockRef::from(&sender);
        let ttl = if v6 { ttl.unicast_hops_v6() } else { ttl.ttl_v4() };
        assert_eq!(ttl.unwrap(), 9);
    }
}

#[test]
fn an_error_that_comes_later_is_told_by_the_next_call() {
    let ((sender, _), (receiver, to)) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let datagrams = over(&sender, false);
    let nowhere = SocketAddr::new(to.ip(), 0);
    let pieces = [IoSlice::new(b"!")];
    let messages = [message(to, 1), message(nowhere, 1), message(to, 1)];
    let send = |first: usize| {
        let batch = Batch { pieces: &pieces, messages: &messages[first..] };
        datagrams.send(&mut Calls::new().unwrap(), batch)
    };
    assert_eq!(send(0).unwrap(), 1);
    assert_eq!(send(1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(send(2).unwrap(), 1);
    drop(receiver);
}

#[test]
fn what_others_have_asked_for_leaves_room_for_what_matters() {
    let (server, bound) = socket("[::]:0");
    sockopt::set_receive_local_address(server.as_fd(), true).unwrap();
    sockopt::set_receive_tos(server.as_fd(), true).unwrap();
    sockopt::set_receive_ttl(server.as_fd(), true).unwrap();
    let datagrams = over(&server, true);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (client, from) = socket(address);
        let v6 = from.is_ipv6();
        let sending = over(&client, v6);
        let called = SocketAddr::new(from.ip(), bound.port());
        let pieces = [IoSlice::new(&[7; 400])];
        // One that is cut apart arrives as a burst, which takes room, too.
        for segment in [0, 100] {
            let messages = [Message { tos: 3, segment, ..message(called, 1) }];
            let batch = Batch { pieces: &pieces, messages: &messages };
            sending.send(&mut Calls::new().unwrap(), batch).unwrap();
            let (bytes, meta) = receive(&datagrams, 1).remove(0);
            assert_eq!((meta.tos, meta.local.map(|l| l.ip)), (3, Some(from.ip())));
            assert_eq!((bytes.len(), meta.segment), (400, segment));
        }
    }
}

#[test]
fn on_a_wildcard_the_address_that_was_called_is_known_and_answers_come_from_it() {
    let (server, bound) = socket("[::]:0");
    let datagrams = over(&server, true);
    for called in ["127.0.0.1", "127.0.0.9", "::1"] {
        let called = SocketAddr::new(called.parse().unwrap(), bound.port());
        let any = if called.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let (client, address) = socket(any);
        client.send_to(b"?", called).unwrap();
        let (_, meta) = receive(&datagrams, 1).remove(0);
        assert_eq!(meta.local, Some(LocalAddr { ip: called.ip(), interface: 0 }));
        assert_eq!(meta.source, Some(address));
        let pieces = [IoSlice::new(b"!")];
        let messages = [Message { local: meta.local, ..message(address, 1) }];
        let batch = Batch { pieces: &pieces, messages: &messages };
        datagrams.send(&mut Calls::new().unwrap(), batch).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(client.recv_from(&mut [0; 9]).unwrap(), (1, called));
    }
}
