//! Queues of small dense numbers, from which any can leave in constant time.

use alloc::vec;
use alloc::vec::Vec;

const NIL: u32 = u32::MAX;

/// Several queues over the same numbers, each of which is in at most one of them, once. Allocates
/// nothing for numbers below its capacity.
#[derive(Clone, Debug)]
pub(crate) struct Queues {
    ends: Vec<Ends>,
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    /// The queue it is in; `NIL` for none.
    queue: u32,
}

impl Link {
    const ALONE: Self = Self { previous: NIL, next: NIL, queue: NIL };
}

impl Queues {
    /// This many empty queues for numbers `0..capacity`.
    pub(crate) fn new(queues: usize, capacity: usize) -> Self {
        let empty = Ends { first: NIL, last: NIL, len: 0 };
        Self { ends: vec![empty; queues], links: Vec::with_capacity(capacity) }
    }

    /// Makes room for numbers `0..capacity`, if there is less.
    pub(crate) fn reserve(&mut self, capacity: usize) {
        self.links.reserve_exact(capacity.saturating_sub(self.links.len()));
    }

    /// How many numbers a queue holds.
    pub(crate) fn len(&self, queue: usize) -> usize {
        self.ends[queue].len as usize
    }

    /// The queue that a number is in.
    pub(crate) fn queue_of(&self, number: usize) -> Option<usize> {
        let link = self.links.get(number).filter(|link| link.queue != NIL)?;
        Some(link.queue as usize)
    }

    /// All numbers of a queue, in the order in which they were pushed.
    pub(crate) fn iter(&self, queue: usize) -> impl Iterator<Item = u32> {
        let next = |&number: &u32| self.links.get(number as usize).map(|link| link.next);
        let all = core::iter::successors(Some(self.ends[queue].first), next);
        all.take_while(|&number| number != NIL)
    }

    /// The number that was pushed first.
    pub(crate) fn first(&self, queue: usize) -> Option<usize> {
        let first = self.ends[queue].first;
        (first != NIL).then_some(first as usize)
    }

    /// Appends a number, which leaves the place where it was.
    pub(crate) fn push(&mut self, queue: usize, number: usize) {
        self.remove(number);
        if self.links.len() <= number {
            self.links.resize(number + 1, Link::ALONE);
        }
        let ends = &mut self.ends[queue];
        self.links[number] = Link { previous: ends.last, next: NIL, queue: queue as u32 };
        match self.links.get_mut(ends.last as usize) {
            Some(last) => last.next = number as u32,
            None => ends.first = number as u32,
        }
        ends.last = number as u32;
        ends.len += 1;
    }

    /// Takes a number out of its queue, if it is in one.
    pub(crate) fn remove(&mut self, number: usize) {
        let Some(queue) = self.queue_of(number) else { return };
        let link = core::mem::replace(&mut self.links[number], Link::ALONE);
        let ends = &mut self.ends[queue];
        match self.links.get_mut(link.previous as usize) {
            Some(previous) => previous.next = link.next,
            None => ends.first = link.next,
        }
        match self.links.get_mut(link.next as usize) {
            Some(next) => next.previous = link.previous,
            None => ends.last = link.previous,
        }
        ends.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_queues_agree_with_lists(
            steps in prop::collection::vec((0usize..10, 0usize..4), 1..200),
        ) {
            const QUEUES: usize = 3;
            let mut queues = Queues::new(QUEUES, 10);
            let mut lists = vec![VecDeque::new(); QUEUES];
            for (number, queue) in steps {
                lists.iter_mut().for_each(|list| list.retain(|&other| other != number));
                if let Some(list) = lists.get_mut(queue) {
                    queues.push(queue, number);
                    list.push_back(number);
                } else {
                    queues.remove(number);
                }
                prop_assert_eq!(queues.queue_of(number), (queue < QUEUES).then_some(queue));
                for (queue, list) in lists.iter().enumerate() {
                    prop_assert_eq!(queues.first(queue), list.front().copied());
                    prop_assert_eq!(queues.len(queue), list.len());
                }
            }
            for (queue, list) in lists.iter_mut().enumerate() {
                while let Some(first) = queues.first(queue) {
                    prop_assert_eq!(Some(first), list.pop_front());
                    queues.remove(first);
                }
            }
        }
    }
}
