//! What is learned, compared with a list that remembers everything.

use alloc::vec::Vec;
use core::time::Duration;
use proptest::collection::vec as many;
use proptest::prelude::*;

use crate::affinity::learned::LearnedIds;
use crate::id::BackendId;
use crate::time::Instant;

/// How many flows there can be: more than ever have an id here, so that no id is forgotten for want
/// of room.
const FLOWS: usize = 64;

const GRACE: Duration = Duration::from_secs(120);

/// What happens to some flow.
#[derive(Clone, Debug)]
enum Event {
    /// Its backend announces an id.
    Announced { flow: usize, id: usize, backend: usize },
    /// A flow opens by an id.
    Adopted { flow: usize, id: usize },
    /// It ends.
    Ended { flow: usize },
    /// This many seconds pass.
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    let flow = 0..8_usize;
    prop_oneof![
        4 => (flow.clone(), 0..6_usize, 0..3_usize)
            .prop_map(|(flow, id, backend)| Event::Announced { flow, id, backend }),
        2 => (flow.clone(), 0..6_usize).prop_map(|(flow, id)| Event::Adopted { flow, id }),
        2 => flow.prop_map(|flow| Event::Ended { flow }),
        2 => (0..130_u64).prop_map(Event::Wait),
    ]
}

/// An id, as the list remembers it.
#[derive(Clone, Copy, Debug)]
struct Known {
    backend: usize,
    flows: usize,
    until: Instant,
}

/// Some ids: of several lengths, and none the beginning of another.
const IDS: [&[u8]; 6] =
    [b"aaaa", b"bbbbb", b"cccccccc", b"dddddddd", b"eeeeeeeeeeee", b"ffffffffffffffffffff"];

/// The list: each id with a flow, or that had one within the grace.
#[derive(Default)]
struct List {
    ids: [Option<Known>; IDS.len()],
    of_flow: [Option<usize>; 8],
}

impl List {
    fn known(&self, id: usize, now: Instant) -> Option<usize> {
        self.ids[id].filter(|k| k.flows > 0 || now < k.until).map(|known| known.backend)
    }

    fn release(&mut self, flow: usize, now: Instant) {
        if let Some(known) = self.of_flow[flow].take().and_then(|id| self.ids[id].as_mut()) {
            known.flows -= 1;
            known.until = now + GRACE;
        }
    }
}

proptest! {
    #[test]
    fn ids_are_known_as_a_list_knows_them(events in many(any_event(), 1..120)) {
        let mut ids = LearnedIds::new((FLOWS, FLOWS), (1, 2));
        let mut list = List::default();
        let mut had = [0; 8];
        let mut now = Instant::from_millis(1_000_000);
        for event in events {
            match event {
                Event::Wait(seconds) => now += Duration::from_secs(seconds),
                Event::Ended { flow } => {
                    ids.release(had[flow], now);
                    had[flow] = 0;
                    list.release(flow, now);
                }
                Event::Announced { flow, id, backend } => {
                    had[flow] = ids.learn(IDS[id], BackendId::new(backend), had[flow], now);
                    // Who repeats what it has said says nothing new.
                    if list.of_flow[flow] != Some(id) {
                        let flows = list.ids[id].map_or(0, |known| known.flows);
                        list.ids[id] = Some(Known { backend, flows: flows + 1, until: now });
                        list.release(flow, now);
                        list.of_flow[flow] = Some(id);
                    }
                }
                Event::Adopted { flow, id } => {
                    let found = ids.find(IDS[id], true, now);
                    prop_assert_eq!(found.map(|found| found.1.index()), list.known(id, now));
                    if let (Some((hash, ..)), None) = (found, list.of_flow[flow]) {
                        prop_assert!(ids.adopt(hash));
                        had[flow] = hash;
                        list.ids[id].as_mut().unwrap().flows += 1;
                        list.of_flow[flow] = Some(id);
                    }
                }
            }
            for (number, id) in IDS.iter().enumerate() {
                let known = list.known(number, now);
                let whole = ids.find(id, true, now);
                prop_assert_eq!(whole.map(|found| found.1.index()), known);
                // As a client sends it in a short header.
                let mut padded: Vec<u8> = id.to_vec();
                padded.resize(20, b'-');
                let found = ids.find(&padded, false, now);
                prop_assert_eq!(found.map(|found| (found.1.index(), found.2)), known.map(|b| (b, id.len())));
            }
            prop_assert!(ids.is_consistent());
        }
        prop_assert!(ids.find(&[b'-'; 20], false, now).is_none());
    }
}
