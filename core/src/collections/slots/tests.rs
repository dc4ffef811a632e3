use super::*;
use proptest::prelude::*;
use std::vec;

proptest! {
    #[test]
    fn slots_agree_with_a_list_of_values_and_a_stack_of_numbers(
        steps in prop::collection::vec(prop::option::of(0usize..12), 1..200),
    ) {
        let mut slots = Slots::with_capacity(0);
        let (mut values, mut vacant) = (vec![], vec![]);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Some(slot) if values.get(slot).is_some_and(Option::is_some) => {
                    prop_assert_eq!(Some(slots.remove(slot)), values[slot].take());
                    vacant.push(slot);
                }
                _ => {
                    let slot = vacant.pop().unwrap_or(values.len());
                    prop_assert_eq!(slots.next(), slot);
                    prop_assert_eq!(slots.insert(number), slot);
                    values.resize(values.len().max(slot + 1), None);
                    values[slot] = Some(number);
                }
            }
            let taken = || values.iter().enumerate().filter_map(|(slot, v)| Some((slot, v.as_ref()?)));
            prop_assert!(slots.iter().eq(taken()));
            prop_assert_eq!((slots.len(), slots.used()), (taken().count(), values.len()));
            prop_assert!(slots.vacant().eq(vacant.iter().rev().map(|&slot| slot as u32)));
            for slot in 0..=values.len() {
                let held = values.get(slot).copied().flatten();
                prop_assert_eq!(slots.get(slot).copied(), held);
                prop_assert_eq!(slots.get_mut(slot).copied(), held);
            }
            let listed: Vec<u32> = slots.vacant().collect();
            let held = slots.iter().map(|(slot, &value)| (slot as u32, value));
            let restored = Slots::restored(slots.used(), 0, held, &listed).expect("what was saved");
            prop_assert!(restored.iter().eq(slots.iter()));
            prop_assert!(restored.vacant().eq(slots.vacant()));
        }
    }
}

fn restored(used: usize, values: &[u32], vacant: &[u32]) -> Option<Slots<u32>> {
    Slots::restored(used, 0, values.iter().map(|&slot| (slot, slot)), vacant)
}

#[test]
fn slots_that_are_named_twice_or_never_are_refused() {
    assert!(restored(4, &[0, 2], &[3, 1]).is_some());
    assert!(restored(0, &[], &[]).is_some());
    for (used, values, vacant) in [
        (4, &[0, 2][..], &[3][..]),
        (4, &[0], &[3, 1]),
        (4, &[0, 0], &[3, 1]),
        (4, &[0, 2], &[3, 3]),
        (4, &[0, 2], &[3, 2]),
        (4, &[0, 4], &[3, 1]),
        (4, &[0, 2], &[4, 1]),
        (4, &[0, 2], &[3, 1, 3]),
        (2, &[], &[0, 0]),
        (3, &[], &[0, 1, 0]),
        (1, &[u32::MAX], &[]),
        (1, &[], &[u32::MAX]),
    ] {
        assert!(restored(used, values, vacant).is_none(), "{used} slots: {values:?} {vacant:?}");
    }
}

#[test]
fn a_value_with_a_bit_to_spare_takes_no_more_room_in_a_slot() {
    assert_eq!(size_of::<Slot<crate::UdpFlow>>(), size_of::<crate::UdpFlow>());
}
