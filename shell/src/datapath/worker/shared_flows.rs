//! One `max_flows` for all shards of a listener that share it: those of a range of ports.
//!
//! A worker serves one shard at a time. Before it does, the shard's manager is told what the others of
//! the listener have, so that all of them together never have more flows than the worker's part of
//! `max_flows`, and one may have all of it. Where a shard refuses newcomers since there are as many flows
//! as may be, and it has none that could go, another of them makes room for those who come next.

use flowgate_core::{Direction, DropReason, Instant, ManagerInput, UdpManager};

use super::NamedShard;
use crate::datapath::worker::kernel::WorkerKernel;

/// Flows that are alive, and slots that are taken by flows and by what is in quarantine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    flows: u32,
    slots: u32,
}

impl Taken {
    fn of(manager: &UdpManager) -> Self {
        Self { flows: manager.flow_count() as u32, slots: manager.taken_slots() as u32 }
    }
}

/// A shard's place among those that it shares with.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharingShard {
    /// The number of the listener's first shard, which stands for the listener.
    listener: u32,
    /// What it had when that was last counted.
    counted: Taken,
    /// What it was told that the others have.
    told: Option<Taken>,
    /// How many datagrams it had refused for want of room when that was looked at last.
    refused: u64,
}

/// How many shards are asked at most to make room for one newcomer of another.
const ASKED_AT_ONCE: usize = 8;

impl SharingShard {
    pub(super) fn of_listener(listener: u32) -> Self {
        Self { listener, counted: Taken::default(), told: None, refused: u64::MAX }
    }
}

/// What the shards of each listener have together, where they share `max_flows`.
#[derive(Debug, Default)]
pub(super) struct SharedFlows {
    /// By the numbers that stand for the listeners.
    totals: Vec<Taken>,
    /// The shard that is asked first to make room.
    next_asked: usize,
}

impl SharedFlows {
    /// Tells a shard that is about to be served what the others have, unless it knows.
    pub(super) fn tell<K: WorkerKernel>(
        &mut self,
        named: &mut NamedShard<K>,
        kernel: &mut K,
        now: Instant,
    ) {
        let Some(total) = self.count(named) else { return };
        let SharingShard { counted, told, .. } = &mut named.sharing;
        let others =
            Taken { flows: total.flows - counted.flows, slots: total.slots - counted.slots };
        if told.replace(others) != Some(others) {
            let Taken { flows, slots } = others;
            named.shard.handle(ManagerInput::TakenElsewhere { flows, slots }, kernel, now);
        }
    }

    /// Counts what a shard has after it was served, and says what all of its listener have. `None`: it
    /// shares with nobody.
    pub(super) fn count<K: WorkerKernel>(&mut self, named: &mut NamedShard<K>) -> Option<Taken> {
        let manager = named.shard.manager();
        manager
            .config()
            .shares_max_flows
            .then(|| self.recount(&mut named.sharing, Taken::of(manager)))
    }

    /// Has another shard of its listener make room where one has refused newcomers for want of it.
    pub(super) fn make_room<K: WorkerKernel>(
        &mut self,
        shards: &mut [Option<NamedShard<K>>],
        refusing: usize,
        kernel: &mut K,
        now: Instant,
    ) {
        let Some(Some(named)) = shards.get_mut(refusing) else { return };
        let manager = named.shard.manager();
        if !manager.config().shares_max_flows {
            return;
        }
        let ledger = manager.counters().ledger(Direction::ToBackend);
        let refused = ledger.dropped_for(DropReason::MaxFlows).datagrams;
        if std::mem::replace(&mut named.sharing.refused, refused) >= refused {
            return;
        }
        let listener = named.sharing.listener;
        // One that waits for its turn to send a flow away has some of its own.
        if self.totals[listener as usize].flows < manager.config().max_flows {
            return;
        }
        let (first, count) = (self.next_asked, shards.len());
        let mut asked = 0;
        for place in (0..count).map(|place| (first + place) % count) {
            let Some(other) = &mut shards[place] else { continue };
            let is_one = other.sharing.listener == listener && other.sharing.counted.flows > 0;
            if !is_one || place == refusing {
                continue;
            }
            let before = other.sharing.counted.flows;
            other.shard.handle(ManagerInput::RoomWanted, kernel, now);
            self.count(other);
            (self.next_asked, asked) = (place + 1, asked + 1);
            if other.sharing.counted.flows < before || asked == ASKED_AT_ONCE {
                break;
            }
        }
    }

    /// Counts a shard no more, as it is not served any more.
    pub(super) fn forget<K: WorkerKernel>(&mut self, named: &mut NamedShard<K>) {
        if named.shard.manager().config().shares_max_flows {
            self.recount(&mut named.sharing, Taken::default());
        }
    }

    /// Counts no shard any more.
    #[cfg(target_os = "linux")]
    pub(super) fn clear(&mut self) {
        self.totals.clear();
    }

    fn recount(&mut self, sharing: &mut SharingShard, now: Taken) -> Taken {
        let listener = sharing.listener as usize;
        if self.totals.len() <= listener {
            self.totals.resize(listener + 1, Taken::default());
        }
        let (total, before) = (&mut self.totals[listener], sharing.counted);
        total.flows = total.flows - before.flows + now.flows;
        total.slots = total.slots - before.slots + now.slots;
        sharing.counted = now;
        *total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shards_of_one_listener_have_is_added_up_and_taken_off_again() {
        let mut shared = SharedFlows::default();
        let taken = |flows, slots| Taken { flows, slots };
        let mut shards = [7, 7, 9].map(SharingShard::of_listener);
        assert_eq!(shared.recount(&mut shards[0], taken(3, 4)), taken(3, 4));
        assert_eq!(shared.recount(&mut shards[1], taken(2, 2)), taken(5, 6));
        assert_eq!(shared.recount(&mut shards[2], taken(1, 1)), taken(1, 1));
        assert_eq!(shared.recount(&mut shards[0], taken(1, 3)), taken(3, 5));
        assert_eq!(shared.recount(&mut shards[1], Taken::default()), taken(1, 3));
    }
}
