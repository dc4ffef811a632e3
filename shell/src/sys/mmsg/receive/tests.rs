use flowgate_core::LocalAddr;

use super::*;
use crate::sys::arena::Arena;

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
    let (mut receiver, mut arena) = (Receiver::default(), Arena::new(8));
    let mut tick = arena.begin();
    let received: Vec<_> =
        tick.receive(8, |slots| receiver.receive(listener.as_fd(), slots)).unwrap().collect();
    assert_eq!(
        received.iter().map(|r| r.bytes).collect::<Vec<_>>(),
        [b"one" as &[u8], b"", b"three"]
    );
    for datagram in received {
        assert_eq!(datagram.meta.source, client.local_addr().ok());
        let local = LocalAddr { ip: [127, 0, 0, 1].into(), interface: 0 };
        assert_eq!(datagram.meta.local, Some(local));
    }
    let empty = tick.receive(1, |slots| receiver.receive(listener.as_fd(), slots)).err().unwrap();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
}
