use super::*;
use alloc::collections::VecDeque;
use proptest::prelude::*;

const LISTS: usize = 3;

fn assert_same(lists: &Lists, expected: &[VecDeque<usize>]) {
    for (list, expected) in expected.iter().enumerate() {
        assert_eq!(lists.first(list), expected.front().copied());
        assert_eq!(lists.len(list), expected.len());
        assert!(lists.iter(list).map(|number| number as usize).eq(expected.iter().copied()));
    }
}

proptest! {
    #[test]
    fn lists_agree_with_queues(
        steps in prop::collection::vec((0usize..10, 0usize..4, any::<bool>()), 1..200),
    ) {
        let mut lists = Lists::new(LISTS, 10);
        let mut expected = vec![VecDeque::new(); LISTS];
        for (number, list, at_front) in steps {
            let was_in = lists.list_of(number);
            prop_assert_eq!(was_in, expected.iter().position(|list| list.contains(&number)));
            expected.iter_mut().for_each(|list| list.retain(|&other| other != number));
            match expected.get_mut(list) {
                None => prop_assert_eq!(lists.remove(number), was_in),
                Some(queue) if at_front => {
                    lists.push_front(list, number);
                    queue.push_front(number);
                }
                Some(queue) => {
                    lists.push_back(list, number);
                    queue.push_back(number);
                }
            }
            prop_assert_eq!(lists.list_of(number), (list < LISTS).then_some(list));
            assert_same(&lists, &expected);
        }
    }

    #[test]
    #[cfg(feature = "snapshot")]
    fn what_has_changed_in_a_list_makes_the_same_of_the_list_as_it_was(
        steps in prop::collection::vec((0usize..12, 0usize..3), 1..60),
        noted_from in 0usize..60,
    ) {
        // Of one list things are pushed to the front, of another to the back.
        let push = |lists: &mut Lists, list: usize, number: usize| match list {
            0 => lists.push_front(0, number),
            1 => lists.push_back(1, number),
            _ => drop(lists.remove(number)),
        };
        let mut lists = Lists::new(2, 0);
        let mut other = lists.clone();
        for (at, &(number, list)) in steps.iter().enumerate() {
            if at == noted_from {
                other = lists.clone();
                lists.note_changes(true);
            }
            push(&mut lists, list, number);
        }
        let [front, back] = [lists.pushed_front(0), lists.pushed_back(1)];
        front.iter().rev().for_each(|&number| other.push_front(0, number as usize));
        back.iter().for_each(|&number| other.push_back(1, number as usize));
        for number in 0..12 {
            if lists.list_of(number).is_none() {
                other.remove(number);
            }
        }
        prop_assert!((0..2).all(|list| other.iter(list).eq(lists.iter(list))));
    }
}
