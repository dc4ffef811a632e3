use super::*;
use proptest::prelude::*;
use std::vec;

type Numbers = IndexedSlab<u32, 1>;

impl Entry for u32 {
    #[cfg(feature = "snapshot")]
    fn vacant() -> Self {
        Self::MAX
    }

    fn hash(&self, _index: usize, _secret: (u64, u64)) -> u64 {
        u64::from(*self % 4)
    }
}

fn find(slab: &Numbers, number: u32) -> Option<usize> {
    slab.find(0, number.hash(0, (0, 0)), |&other| other == number)
}

#[test]
fn slots_agree_with_a_list_of_values_and_a_stack_of_numbers() {
    proptest!(|(steps in prop::collection::vec(prop::option::of(0usize..12), 1..200))| {
        let mut slab = Numbers::new((0, 0));
        let (mut values, mut vacant) = (vec![], vec![]);
        for (number, step) in (0..).zip(steps) {
            match step {
                Some(slot) if values.get(slot).is_some_and(Option::is_some) => {
                    slab.remove_from(0, slot);
                    prop_assert_eq!(Some(slab.remove(slot)), values[slot].take());
                    vacant.push(slot);
                }
                _ => {
                    let slot = vacant.pop().unwrap_or(values.len());
                    prop_assert_eq!(slab.next(), slot);
                    prop_assert_eq!(slab.insert(number), slot);
                    slab.add_to(0, slot);
                    values.resize(values.len().max(slot + 1), None);
                    values[slot] = Some(number);
                }
            }
            let taken = || values.iter().enumerate().filter_map(|(slot, v)| Some((slot, v.as_ref()?)));
            prop_assert!(slab.iter().eq(taken()));
            prop_assert!(taken().all(|(slot, &number)| find(&slab, number) == Some(slot)));
            prop_assert_eq!((slab.len(), slab.used()), (taken().count(), values.len()));
            prop_assert_eq!(slab.indexed(0).len(), slab.len());
            for slot in 0..=values.len() {
                let held = values.get(slot).copied().flatten();
                prop_assert_eq!(slab.get(slot).copied(), held);
                prop_assert_eq!(slab.get_mut(slot).copied(), held);
            }
        }
    });
}

#[cfg(feature = "snapshot")]
mod changes {
    use super::*;
    use alloc::vec::Vec;

    /// The same changes in another slab.
    fn follow(other: &mut Numbers, slab: &mut Numbers) {
        let changed: Vec<_> = slab.iter().filter(|&(slot, _)| slab.has_changed(slot)).collect();
        let entries: Vec<_> = changed.iter().map(|&(slot, &entry)| (slot as u32, entry)).collect();
        let vacant = slab.vacant();
        let changed: Vec<u32> = entries.iter().map(|entry| entry.0).chain(vacant.clone()).collect();
        other.update(&changed, entries.iter().copied(), &vacant).expect("what has changed");
        entries.iter().for_each(|&(slot, _)| other.add_to(0, slot as usize));
    }

    proptest! {
        #[test]
        fn what_has_changed_makes_the_same_of_a_slab_as_it_was(
            steps in prop::collection::vec(prop::option::of(0usize..12), 1..100),
            noted_from in 0usize..100,
        ) {
            let mut slab = Numbers::new((0, 0));
            let mut other = slab.clone();
            for (number, step) in steps.into_iter().enumerate() {
                if number == noted_from {
                    other = slab.clone();
                    slab.note_changes(true);
                }
                match step {
                    Some(slot) if slab.get(slot).is_some() => {
                        slab.remove_from(0, slot);
                        slab.remove(slot);
                    }
                    _ => {
                        let slot = slab.insert(number as u32);
                        slab.add_to(0, slot);
                    }
                }
            }
            follow(&mut other, &mut slab);
            prop_assert!(other.iter().eq(slab.iter()));
            prop_assert_eq!((other.used(), other.indexed(0).len()), (slab.used(), slab.len()));
            prop_assert!(slab.iter().all(|(slot, &number)| find(&other, number) == Some(slot)));
            slab.note_changes(false);
            let order = slab.vacant();
            prop_assert_eq!(order.len(), slab.used() - slab.len());
            prop_assert_eq!(&other.vacant(), &order, "the order of vacant slots");
            prop_assert_eq!(&slab.vacant(), &order, "it was read, and is the same");
            let reused: Vec<u32> = order.iter().map(|_| slab.insert(0) as u32).collect();
            prop_assert_eq!(reused, order);
        }
    }

    fn update(slab: &mut Numbers, values: &[u32], vacant: &[u32]) -> Option<()> {
        let changed = [values, vacant].concat();
        slab.update(&changed, values.iter().map(|&slot| (slot, slot)), vacant)
    }

    #[test]
    fn slots_that_are_named_twice_or_never_are_refused() {
        let restored = |values: &[u32], vacant: &[u32]| {
            update(&mut Numbers::new((0, 0)), values, vacant).is_some()
        };
        assert!(restored(&[0, 2], &[3, 1]) && restored(&[], &[]));
        for (values, vacant) in [
            (&[0, 2][..], &[3][..]),
            (&[0], &[3, 1]),
            (&[0, 0], &[3, 1]),
            (&[0, 2], &[3, 3]),
            (&[0, 2], &[3, 2]),
            (&[0, 4], &[3, 1]),
            (&[0, 2], &[4, 1]),
            (&[0, 2], &[3, 1, 3]),
            (&[], &[0, 0]),
            (&[], &[0, 1, 0]),
            (&[u32::MAX], &[]),
            (&[], &[u32::MAX]),
        ] {
            assert!(!restored(values, vacant), "{values:?} {vacant:?}");
        }
    }

    #[test]
    fn changes_that_cannot_have_been_are_refused() {
        let base = || {
            let mut slab = Numbers::new((0, 0));
            update(&mut slab, &[0, 1], &[3, 2]).expect("a slab");
            slab
        };
        assert!(update(&mut base(), &[3], &[]).is_some(), "the one that is used first");
        assert!(update(&mut base(), &[2], &[]).is_none(), "one before the other");
        assert!(update(&mut base(), &[4], &[]).is_none(), "a new one before those");
        assert!(update(&mut base(), &[2, 3, 4], &[]).is_some());
        assert!(update(&mut base(), &[2, 3], &[1]).is_some());
    }
}

#[test]
#[cfg(feature = "snapshot")]
fn a_value_with_a_bit_to_spare_takes_no_more_room_in_a_slot() {
    let quarantined = <crate::UdpFlow as Entry>::vacant;
    let mut flows = Slab::new();
    let slots = [flows.insert(quarantined()), flows.insert(quarantined())];
    let [first, second] = slots.map(|slot| core::ptr::from_ref(&flows[slot]).addr());
    assert_eq!(second - first, size_of::<crate::UdpFlow>());
}
