//! The grammar: everything that can happen to a balancer.

mod change;
mod choose;

use std::time::Duration;

use flowgate_core::burst::MAX_BURST_BYTES;
use flowgate_core::{Direction, DropReason, NetworkError};

pub use change::{CHANGES, Change, Newcomer};

/// One thing that happens.
///
/// Actions name clients, flows and parcels by numbers that are taken modulo what there is when the
/// action is played. So every list of actions can be played, also one with a part cut out, which
/// is what shrinking needs; and no action needs to know what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client sends datagrams.
    Send {
        /// Which client, and which of the local addresses it calls.
        party: u8,
        /// Their TOS byte.
        tos: u8,
        /// The time to live that they have left on arrival.
        ttl: u8,
        /// The datagrams.
        train: Train,
        /// What the network does with them.
        fate: Fate,
    },
    /// Clients that have flows send something more.
    Again {
        /// Which of the flows that are open.
        flow: u8,
        /// How many flows from there on.
        flows: u8,
        /// The TOS byte.
        tos: u8,
        /// The datagrams.
        train: Train,
        /// What the network does with them.
        fate: Fate,
    },
    /// Something that a client sent, and the network held back, goes on.
    Arrive {
        /// Which of the parcels held back.
        pick: u8,
        /// Whether the kernel joins to it what else it can.
        coalesced: bool,
        /// What happens to it now.
        fate: Fate,
    },
    /// An answer that a backend has sent goes on.
    Answer {
        /// Which of the parcels on their way.
        pick: u8,
        /// Whether the kernel joins to it what else it can.
        coalesced: bool,
        /// What happens to it now.
        fate: Fate,
    },
    /// Datagrams that nobody asked for come from a backend.
    Push {
        /// On which flow's socket.
        flow: FlowPick,
        /// Their TOS byte.
        tos: u8,
        /// The datagrams.
        train: Train,
    },
    /// The kernel delivers something that cannot be used.
    Unusable {
        /// Which way it was going.
        direction: Direction,
        /// What is wrong with it.
        reason: DropReason,
        /// How many datagrams.
        datagrams: u32,
    },
    /// The sockets stop taking datagrams: what is to be sent waits.
    Block,
    /// The sockets take datagrams again: what waits is sent.
    Unblock,
    /// Some of what waits is given up.
    GiveUp {
        /// Which of what waits.
        pick: u8,
        /// How many of its datagrams, from its end.
        datagrams: u8,
        /// Why.
        reason: DropReason,
    },
    /// An upstream socket fails.
    Fail {
        /// Which flow's.
        flow: FlowPick,
        /// How.
        failure: SocketFailure,
    },
    /// Someone has news of a backend.
    News {
        /// Which backend.
        backend: BackendPick,
        /// What is said of it.
        event: News,
    },
    /// The configuration changes.
    Reconfigure {
        /// What is different.
        change: Change,
        /// Whether it may take as long as a table for Maglev takes, which is as long as a
        /// simulation. One that is not patient leaves a configuration with Maglev as it is.
        patient: bool,
    },
    /// The kernel forwards datagrams of a flow that it was offered.
    Forward {
        /// Which one.
        pick: u8,
        /// How many go to the backend.
        to_backend: u8,
        /// How many go to the client.
        to_client: u8,
    },
    /// It is told what the kernel has forwarded.
    Tell {
        /// Of which flow.
        pick: u8,
    },
    /// The kernel forwards no more of a flow, as it has lost it.
    Forget {
        /// Which one.
        pick: u8,
    },
    /// What the kernel has forwarded of flows that were recalled is told at last.
    TellRecalled,
    /// The operator drains the manager. Once it is empty, a new one takes its place.
    Drain {
        /// How long flows may go on.
        patience: Duration,
    },
    /// This host's network changes.
    NetworkChanges,
    /// The listener is about to be read.
    Read {
        /// Whether so much waits there that some may be lost.
        is_behind: bool,
    },
    /// Others that share `max_flows` and `max_slots` come to hold so much of them.
    Others {
        /// How many flows they have.
        flows: u32,
        /// How many slots they have taken.
        slots: u32,
    },
    /// Another of those has refused a newcomer, and one of this balancer's flows is to make room.
    WantRoom,
    /// The state of the balancer is written down, and one that is made of that goes on.
    Snapshot,
    /// Time passes and nothing else happens.
    Wait(Pause),
    /// The shell's timer fires.
    Timeout(When),
}

/// What is wrong with an upstream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFailure {
    /// It could not be opened.
    NotOpened,
    /// The network has reported something.
    Network(NetworkError),
}

/// Datagrams of equal length, the last one perhaps shorter: what UDP GRO delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// The length of each.
    pub len: u16,
    /// How many: at least one is sent, and no more than fit a burst.
    pub count: u8,
    /// By how much the last one of several is shorter.
    pub short_by: u16,
}

impl Train {
    /// One datagram.
    pub const fn single(len: u16) -> Self {
        Self { len, count: 1, short_by: 0 }
    }

    /// How many datagrams there are. An empty one always comes alone.
    pub fn count(self) -> usize {
        match usize::from(self.len) {
            0 => 1,
            len => usize::from(self.count).clamp(1, (MAX_BURST_BYTES / len).max(1)),
        }
    }

    /// The length of all of them. The last of several is never empty.
    pub fn total_len(self) -> usize {
        let full = self.count() * usize::from(self.len);
        if self.count() == 1 {
            return full;
        }
        full - usize::from(self.short_by.min(self.len - 1))
    }
}

/// What the network does with a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Delivers it now.
    Now,
    /// Delivers its datagrams one by one.
    Singly,
    /// Loses it.
    Lost,
    /// Delivers it twice.
    Twice,
    /// Holds it back, while others overtake it.
    Later,
}

/// A flow, as an action names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowPick {
    /// One whose upstream socket is open.
    Live(u8),
    /// One that has closed not long ago.
    Stale(u8),
    /// An id that another manager has given out.
    Forged(u8),
}

/// A backend, as an action names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendPick {
    /// One that there is.
    Known(u8),
    /// The one that serves a flow.
    Serving(u8),
    /// One that another manager knows.
    Forged(u8),
}

/// What is said of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Its probes find it in order.
    Up,
    /// They find it out of order.
    Down,
    /// It is to have no new flows, and none at all after so long.
    Drain(Option<Duration>),
    /// It may have flows again.
    Undrain,
    /// Nobody probes it.
    Unprobed,
}

/// How long nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Some nanoseconds.
    Nanos(u16),
    /// Some milliseconds.
    Millis(u16),
    /// A third of the idle timeout.
    Third,
    /// One nanosecond less than the idle timeout.
    AlmostIdle,
    /// The idle timeout.
    Idle,
    /// A year.
    Year,
}

/// When a timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Now, whether anything is due or not.
    Now,
    /// One nanosecond before the manager asked to be called.
    Early,
    /// When it asked to be called.
    Due,
    /// When it asked to be called, and again at once.
    Twice,
    /// Some milliseconds after it asked to be called.
    Late(u16),
}
