//! Doubly linked lists of small dense numbers, whose links lie in one array: an intrusive list, in
//! which a number can be found, moved and removed in constant time.

use alloc::vec;
use alloc::vec::Vec;
use core::iter;

use crate::collections::slot_set::SlotSet;

const NIL: u32 = u32::MAX;

/// Several lists over the same numbers, each of which is in at most one of them, once. Allocates
/// nothing for numbers below its capacity.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    ends: Vec<Ends>,
    links: Vec<Link>,
    /// The numbers that have been pushed or removed since changes are noted.
    changed: Option<SlotSet>,
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
    /// The list it is in; `NIL` for none.
    list: u32,
}

impl Link {
    const ALONE: Self = Self { previous: NIL, next: NIL, list: NIL };
}

impl Lists {
    /// This many empty lists for numbers `0..capacity`.
    pub(crate) fn new(lists: usize, capacity: usize) -> Self {
        let empty = Ends { first: NIL, last: NIL, len: 0 };
        Self { ends: vec![empty; lists], links: Vec::with_capacity(capacity), changed: None }
    }

    /// Makes room for numbers `0..capacity`, if there is less.
    pub(crate) fn reserve(&mut self, capacity: usize) {
        self.links.reserve_exact(capacity.saturating_sub(self.links.len()));
    }

    /// How many numbers a list holds.
    pub(crate) fn len(&self, list: usize) -> usize {
        self.ends[list].len as usize
    }

    /// The list that a number is in.
    pub(crate) fn list_of(&self, number: usize) -> Option<usize> {
        let link = self.links.get(number).filter(|link| link.list != NIL)?;
        Some(link.list as usize)
    }

    /// All numbers of a list, from its front.
    pub(crate) fn iter(&self, list: usize) -> impl Iterator<Item = u32> {
        self.walk(self.ends[list].first, |link| link.next)
    }

    /// The number at the front.
    pub(crate) fn first(&self, list: usize) -> Option<usize> {
        let first = self.ends[list].first;
        (first != NIL).then_some(first as usize)
    }

    /// Appends a number, which leaves the place where it was.
    pub(crate) fn push_back(&mut self, list: usize, number: usize) {
        self.remove(number);
        let last = self.ends[list].last;
        self.link(number, Link { previous: last, next: NIL, list: list as u32 });
    }

    /// Puts a number before all others, which leaves the place where it was.
    pub(crate) fn push_front(&mut self, list: usize, number: usize) {
        self.remove(number);
        let first = self.ends[list].first;
        self.link(number, Link { previous: NIL, next: first, list: list as u32 });
    }

    fn link(&mut self, number: usize, link: Link) {
        if self.links.len() <= number {
            self.links.resize(number + 1, Link::ALONE);
        }
        self.links[number] = link;
        let ends = &mut self.ends[link.list as usize];
        match self.links.get_mut(link.previous as usize) {
            Some(previous) => previous.next = number as u32,
            None => ends.first = number as u32,
        }
        match self.links.get_mut(link.next as usize) {
            Some(next) => next.previous = number as u32,
            None => ends.last = number as u32,
        }
        ends.len += 1;
        self.note(number);
    }

    /// Takes a number out of its list, and says which that was, if it is in one.
    pub(crate) fn remove(&mut self, number: usize) -> Option<usize> {
        let list = self.list_of(number)?;
        let link = core::mem::replace(&mut self.links[number], Link::ALONE);
        let ends = &mut self.ends[list];
        match self.links.get_mut(link.previous as usize) {
            Some(previous) => previous.next = link.next,
            None => ends.first = link.next,
        }
        match self.links.get_mut(link.next as usize) {
            Some(next) => next.previous = link.previous,
            None => ends.last = link.previous,
        }
        ends.len -= 1;
        self.note(number);
        Some(list)
    }

    fn walk(&self, from: u32, step: fn(&Link) -> u32) -> impl Iterator<Item = u32> {
        let next = move |&number: &u32| self.links.get(number as usize).map(step);
        iter::successors(Some(from), next).take_while(|&number| number != NIL)
    }

    #[inline]
    fn note(&mut self, number: usize) {
        if let Some(changed) = &mut self.changed {
            changed.insert(number);
        }
    }
}

/// What has changed. Where that is not noted, everything has.
#[cfg(feature = "snapshot")]
impl Lists {
    /// Notes from now on what changes, or stops to do that.
    pub(crate) fn note_changes(&mut self, whether: bool) {
        self.changed = whether.then(|| SlotSet::with_capacity(self.links.capacity()));
    }

    /// The numbers that have come to the front of a list into which none is pushed elsewhere, from the
    /// front. The others follow as they were.
    pub(crate) fn pushed_front(&self, list: usize) -> Vec<u32> {
        self.iter(list).take_while(|&number| self.has_changed(number)).collect()
    }

    /// The numbers that have come to the back of a list into which none is pushed elsewhere, the last
    /// one last. Those before them are as they were.
    pub(crate) fn pushed_back(&self, list: usize) -> Vec<u32> {
        let from_back = self.walk(self.ends[list].last, |link| link.previous);
        let mut pushed: Vec<_> = from_back.take_while(|&number| self.has_changed(number)).collect();
        pushed.reverse();
        pushed
    }

    fn has_changed(&self, number: u32) -> bool {
        self.changed.as_ref().is_none_or(|changed| changed.contains(number as usize))
    }
}

#[cfg(test)]
mod tests;
