//! A queue of small dense numbers, from which any can leave in constant time.

use alloc::vec::Vec;

const NIL: u32 = u32::MAX;

/// Numbers in the order they were pushed, each at most once. Allocates nothing after it is made.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    first: u32,
    last: u32,
    len: usize,
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    is_queued: bool,
}

impl Link {
    const ALONE: Self = Self { previous: NIL, next: NIL, is_queued: false };
}

impl Queue {
    /// An empty queue for numbers `0..capacity`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { first: NIL, last: NIL, len: 0, links: Vec::with_capacity(capacity) }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, number: usize) -> bool {
        self.links.get(number).is_some_and(|link| link.is_queued)
    }

    /// The number that was pushed first.
    pub(crate) fn first(&self) -> Option<usize> {
        (self.first != NIL).then_some(self.first as usize)
    }

    /// Appends a number; one that is in the queue goes to its end.
    pub(crate) fn push(&mut self, number: usize) {
        self.remove(number);
        if self.links.len() <= number {
            self.links.resize(number + 1, Link::ALONE);
        }
        self.links[number] = Link { previous: self.last, next: NIL, is_queued: true };
        match self.links.get_mut(self.last as usize) {
            Some(last) => last.next = number as u32,
            None => self.first = number as u32,
        }
        self.last = number as u32;
        self.len += 1;
    }

    /// Takes out a number, if it is there.
    pub(crate) fn remove(&mut self, number: usize) {
        let Some(link) = self.links.get(number).copied().filter(|link| link.is_queued) else {
            return;
        };
        match self.links.get_mut(link.previous as usize) {
            Some(previous) => previous.next = link.next,
            None => self.first = link.next,
        }
        match self.links.get_mut(link.next as usize) {
            Some(next) => next.previous = link.previous,
            None => self.last = link.previous,
        }
        self.links[number] = Link::ALONE;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_list(
            steps in prop::collection::vec((0usize..10, prop::bool::ANY), 1..200),
        ) {
            let (mut queue, mut list) = (Queue::new(10), VecDeque::new());
            for (number, is_push) in steps {
                list.retain(|&other| other != number);
                if is_push {
                    queue.push(number);
                    list.push_back(number);
                } else {
                    queue.remove(number);
                }
                prop_assert_eq!(queue.first(), list.front().copied());
                prop_assert_eq!(queue.len(), list.len());
                prop_assert_eq!(queue.contains(number), is_push);
            }
            while let Some(first) = queue.first() {
                prop_assert_eq!(Some(first), list.pop_front());
                queue.remove(first);
            }
        }
    }
}
