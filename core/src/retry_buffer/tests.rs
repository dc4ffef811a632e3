use std::collections::VecDeque;
use std::vec;

use proptest::prelude::*;

use super::*;

fn buffer(max_bytes: usize, max_copies: usize) -> RetryBuffer {
    RetryBuffer { max_bytes, max_copies, ..RetryBuffer::default() }
}

fn keep(buffer: &mut RetryBuffer, slot: usize, datagram: &[u8]) {
    let front = [&b"head"[..2], &b"er"[..0], &[]];
    buffer.keep(slot, &Keep { front, datagram, tos: 0, ttl: 64, times: 1, due: None });
}

fn datagram(buffer: &RetryBuffer, slot: usize) -> Option<Vec<u8>> {
    buffer.datagram(slot).map(|kept| kept.datagram.to_vec())
}

proptest! {
    /// Whatever is kept is what was kept last for a slot, whole; what is missing is the oldest.
    #[test]
    fn the_oldest_make_room_for_the_newest(
        steps in prop::collection::vec((0_usize..12, 0_usize..40, prop::bool::weighted(0.3)), 1..300),
        max_copies in 1_usize..10,
    ) {
        let mut buffer = buffer(100, max_copies);
        // In the order in which they were kept.
        let mut expected = VecDeque::<(usize, Vec<u8>)>::new();
        for (number, (slot, len, is_over)) in steps.into_iter().enumerate() {
            expected.retain(|(other, _)| *other != slot);
            if is_over {
                buffer.forget(slot);
            } else {
                let bytes = vec![number as u8; len];
                keep(&mut buffer, slot, &bytes);
                expected.push_back((slot, bytes));
            }
            let size = |expected: &VecDeque<(usize, Vec<u8>)>| {
                expected.iter().map(|(_, bytes)| bytes.len() + 2).sum::<usize>()
            };
            while expected.len() > max_copies || size(&expected) > 100 {
                expected.pop_front();
            }
            for (slot, bytes) in &expected {
                prop_assert_eq!(datagram(&buffer, *slot), Some(bytes.clone()));
                prop_assert_eq!(buffer.datagram(*slot).unwrap().front, b"he");
            }
            let kept = (0..12).filter(|&slot| buffer.get(slot).is_some()).count();
            prop_assert_eq!(kept, expected.len());
            prop_assert_eq!(buffer.is_empty(), expected.is_empty());
            prop_assert!(is_over || buffer.get(slot).is_some(), "the newest has room");
            prop_assert!(buffer.is_sound(|_| true, |_| true));
        }
    }
}

#[test]
fn what_is_larger_than_all_room_is_not_kept() {
    let mut buffer = buffer(100, 8);
    keep(&mut buffer, 1, &[0; 98]);
    keep(&mut buffer, 2, &[0; 99]);
    assert!(buffer.get(1).is_some() && buffer.get(2).is_none());
}

#[test]
fn empty_datagrams_are_kept_too() {
    let mut buffer = buffer(100, 8);
    (0..6).for_each(|slot| keep(&mut buffer, slot, b""));
    assert!((0..6).all(|slot| datagram(&buffer, slot) == Some(vec![])));
}
