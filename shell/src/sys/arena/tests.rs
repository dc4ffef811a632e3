use super::*;

fn meta() -> RecvMeta {
    RecvMeta { source: Some("192.0.2.1:7".parse().unwrap()), ..RecvMeta::default() }
}

#[test]
fn what_was_received_stays_while_more_is() {
    let mut arena = Arena::new(3);
    let mut tick = arena.begin();
    let mut all = vec![];
    for bytes in [b"first" as &[u8], b"", b"third"] {
        all.extend(
            tick.receive(1, |slots| {
                slots.fill(0, bytes, meta());
                Ok(1)
            })
            .unwrap(),
        );
    }
    assert_eq!(tick.free(), 0);
    assert_eq!(all.iter().map(|r| r.bytes).collect::<Vec<_>>(), [b"first" as &[u8], b"", b"third"]);
    assert!(all.iter().all(|r| r.meta.source == meta().source));
}

#[test]
fn a_full_arena_receives_nothing() {
    let mut arena = Arena::new(1);
    let mut tick = arena.begin();
    for expected in [1, 0] {
        let received = tick.receive(5, |slots| {
            slots.fill(0, b"x", meta());
            Ok(5)
        });
        assert_eq!(received.unwrap().len(), expected);
    }
}

#[test]
fn each_tick_begins_with_all_slots() {
    let mut arena = Arena::new(1);
    for len in [9, SLOT_BYTES, SLOT_BYTES + 1, 0] {
        let received: Vec<_> = arena
            .begin()
            .receive(1, |slots| {
                slots.fill(0, &vec![7; len], meta());
                Ok(1)
            })
            .unwrap()
            .map(|r| (r.bytes.len(), r.meta.is_truncated))
            .collect();
        assert_eq!(received, [(len.min(SLOT_BYTES), len > SLOT_BYTES)]);
    }
}

#[test]
fn a_slot_that_does_not_exist_takes_nothing() {
    let mut arena = Arena::new(2);
    let mut tick = arena.begin();
    tick.receive(1, |slots| {
        slots.fill(1, b"x", meta());
        assert!(slots.payload(1).is_empty());
        Ok(0)
    })
    .unwrap();
    assert_eq!(tick.free(), 2);
}

#[test]
fn a_failed_receive_takes_no_slot() {
    let mut arena = Arena::new(1);
    let mut tick = arena.begin();
    assert!(tick.receive(1, |_| Err(io::ErrorKind::WouldBlock.into())).is_err());
    assert_eq!(tick.free(), 1);
}
