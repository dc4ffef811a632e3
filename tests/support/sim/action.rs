//! The grammar: everything that can happen to a balancer.

use std::time::Duration;

use flowgate_core::burst::MAX_BURST_BYTES;
use flowgate_core::{Direction, DropReason, UpstreamFailure};

use super::choice::Choices;

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
        failure: UpstreamFailure,
    },
    /// The operator drains the manager. Once it is empty, a new one takes its place.
    Drain {
        /// How long flows may go on.
        patience: Duration,
    },
    /// Time passes and nothing else happens.
    Wait(Pause),
    /// The shell's timer fires.
    Timeout(When),
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

/// Why the kernel cannot deliver a datagram whole.
const ON_ARRIVAL: [DropReason; 3] =
    [DropReason::Truncated, DropReason::ControlTruncated, DropReason::ForeignSource];

/// Why the shell cannot send a datagram.
const ON_SENDING: [DropReason; 10] = [
    DropReason::QueueFull,
    DropReason::NoDescriptors,
    DropReason::NoPorts,
    DropReason::NoBuffers,
    DropReason::NotPermitted,
    DropReason::Unreachable,
    DropReason::Refused,
    DropReason::MessageSize,
    DropReason::SendFailed,
    DropReason::Closed,
];

/// Of clients near and far; the last ones have gone in circles.
const TTLS: [u8; 16] = [64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 55, 128, 255, 2, 1, 0];

impl Action {
    /// Any action.
    pub fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(64) {
            0..22 => Self::Send {
                party: choices.byte(),
                tos: choices.byte(),
                ttl: choices.one_of(&TTLS),
                train: Train::choose(choices),
                fate: Fate::choose(choices),
            },
            22..27 => Self::Arrive {
                pick: choices.byte(),
                coalesced: choices.one_in(2),
                fate: Fate::choose(choices),
            },
            27..42 => Self::Answer {
                pick: choices.byte(),
                coalesced: choices.one_in(2),
                fate: Fate::choose(choices),
            },
            42..45 => Self::Push {
                flow: FlowPick::choose(choices),
                tos: choices.byte(),
                train: Train::choose(choices),
            },
            45 => Self::Unusable {
                direction: choices.one_of(&Direction::ALL),
                reason: choices.one_of(&ON_ARRIVAL),
                datagrams: choices.below(70) as u32,
            },
            46 => Self::Block,
            47 => Self::Unblock,
            48..51 => Self::GiveUp {
                pick: choices.byte(),
                datagrams: choices.byte(),
                reason: choices.one_of(&ON_SENDING),
            },
            51..53 => Self::Fail {
                flow: FlowPick::choose(choices),
                failure: choices.one_of(&[
                    UpstreamFailure::NotOpened,
                    UpstreamFailure::Refused,
                    UpstreamFailure::Unreachable,
                ]),
            },
            53 if choices.one_in(16) => Self::Drain {
                patience: Duration::from_micros(choices.one_of(&[0, 1, 3_000, 90_000_000])),
            },
            53..59 => Self::Wait(Pause::choose(choices)),
            _ => Self::Timeout(When::choose(choices)),
        }
    }

    /// Actions without end.
    pub fn stream(mut choices: impl Choices) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || Some(Self::choose(&mut choices)))
    }
}

impl Train {
    /// Mostly short and single; lengths at which something changes are met often.
    fn choose(choices: &mut impl Choices) -> Self {
        let len = match choices.below(64) {
            0..4 => 0,
            4..8 => choices.one_of(&[1, 5, 6, 7]),
            8..10 => choices.one_of(&[299, 300, 301, 1_199, 1_200, 1_201]),
            10 if choices.one_in(16) => choices.one_of(&[32_768, 65_506, 65_507, 65_508, u16::MAX]),
            _ => 8 + choices.below(40) as u16,
        };
        let count = match choices.below(16) {
            0..10 => 1,
            10..13 => 2,
            13..15 => 3 + choices.below(6) as u8,
            _ => choices.one_of(&[16, 63, 64]),
        };
        let short_by = match choices.below(2) {
            0 => 0,
            _ => choices.below(u64::from(len)) as u16,
        };
        Self { len, count, short_by }
    }
}

impl Fate {
    fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(16) {
            0..10 => Self::Now,
            10 => Self::Singly,
            11 => Self::Lost,
            12 => Self::Twice,
            _ => Self::Later,
        }
    }
}

impl FlowPick {
    fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(8) {
            0..4 => Self::Live(choices.byte()),
            4..7 => Self::Stale(choices.byte()),
            _ => Self::Forged(choices.byte()),
        }
    }
}

impl Pause {
    fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(64) {
            0..24 => Self::Nanos(choices.below(1 << 16) as u16),
            24..44 => Self::Millis(choices.below(100) as u16),
            44..54 => Self::Third,
            54..58 => Self::AlmostIdle,
            58..62 => Self::Idle,
            62 => Self::Millis(choices.below(1 << 16) as u16),
            _ => Self::Year,
        }
    }
}

impl When {
    fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(8) {
            0..2 => Self::Now,
            2 => Self::Early,
            3..6 => Self::Due,
            6 => Self::Twice,
            _ => Self::Late(choices.below(1 << 12) as u16),
        }
    }
}
