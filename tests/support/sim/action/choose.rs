//! How actions are chosen, and so how often each is met.

use std::time::Duration;

use flowgate_core::{Direction, DropReason, NetworkError};

use super::{Action, BackendPick, Change, Fate, FlowPick, News, Pause, SocketFailure, Train, When};
use crate::sim::choice::Choices;

/// Why the kernel cannot deliver a datagram whole.
const ON_ARRIVAL: [DropReason; 3] =
    [DropReason::Truncated, DropReason::ControlTruncated, DropReason::ForeignSource];

/// Why the shell cannot send a datagram.
const ON_SENDING: [DropReason; 11] = [
    DropReason::QueueFull,
    DropReason::NoDescriptors,
    DropReason::NoPorts,
    DropReason::NoSource,
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

/// How many actions there are for each snapshot.
const ACTIONS_TO_A_SNAPSHOT: u64 = 48;

impl Action {
    /// Any action but a snapshot.
    pub fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(95) {
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
            27..42 | 77..81 => Self::Answer {
                pick: choices.byte(),
                coalesced: choices.one_in(2),
                fate: Fate::choose(choices),
            },
            42..45 => Self::Push {
                flow: FlowPick::choose(choices),
                tos: choices.byte(),
                train: Train::choose(choices),
            },
            45 if choices.one_in(2) => Self::Read { is_behind: choices.one_in(2) },
            45 if choices.one_in(4) => Self::NetworkChanges,
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
            51..54 => Self::Fail {
                flow: FlowPick::choose(choices),
                failure: choices.one_of(&[
                    SocketFailure::NotOpened,
                    SocketFailure::Network(NetworkError::Refused),
                    SocketFailure::Network(NetworkError::Unreachable),
                ]),
            },
            54 if choices.one_in(16) => Self::Drain {
                patience: Duration::from_micros(choices.one_of(&[0, 1, 3_000, 90_000_000])),
            },
            54..60 => Self::Wait(Pause::choose(choices)),
            60..62 => {
                let event = News::choose(choices);
                Self::News { backend: BackendPick::choose(event, choices), event }
            }
            62 => Self::Reconfigure { change: Change::choose(choices), patient: choices.one_in(8) },
            63..77 => Self::Again {
                flow: choices.byte(),
                flows: choices.one_of(&[1, 1, 1, 8]),
                tos: choices.byte(),
                train: Train::choose(choices),
                fate: Fate::choose(choices),
            },
            81..86 => Self::Timeout(When::choose(choices)),
            86..90 => Self::Forward {
                pick: choices.byte(),
                to_backend: choices.one_of(&[0, 1, 1, 5]),
                to_client: choices.one_of(&[0, 1, 1, 5]),
            },
            90 => Self::Tell { pick: choices.byte() },
            91 => Self::Forget { pick: choices.byte() },
            92 => Self::TellRecalled,
            93 => Self::WantRoom,
            _ => {
                let flows = choices.one_of(&[0, 0, 1, 6, 14, 30, u32::MAX]);
                let quarantined = choices.one_of(&[0, 0, 1, 6, 20]);
                Self::Others { flows, slots: flows.saturating_add(quarantined) }
            }
        }
    }

    /// A list of actions with snapshots in it. When they are made is drawn apart, so that a seed
    /// means for everything else what it would mean without them.
    pub fn with_snapshots(
        actions: impl IntoIterator<Item = Self>,
        mut choices: impl Choices,
    ) -> impl Iterator<Item = Self> {
        actions.into_iter().flat_map(move |action| {
            let snapshot = choices.one_in(ACTIONS_TO_A_SNAPSHOT).then_some(Self::Snapshot);
            snapshot.into_iter().chain([action])
        })
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

impl News {
    /// Good news more often than bad ones, or soon nobody would be served.
    fn choose(choices: &mut impl Choices) -> Self {
        match choices.below(16) {
            0..3 => Self::Up,
            3..6 => Self::Unprobed,
            6..10 => Self::Down,
            10..12 => Self::Drain(choices.one_of(&[
                None,
                Some(Duration::ZERO),
                Some(Duration::from_micros(1_500)),
                Some(Duration::from_secs(2)),
                Some(Duration::from_secs(90)),
            ])),
            _ => Self::Undrain,
        }
    }
}

impl BackendPick {
    /// Bad news are mostly of a backend that has flows.
    fn choose(event: News, choices: &mut impl Choices) -> Self {
        let is_bad = matches!(event, News::Down | News::Drain(_));
        match choices.below(16) {
            0 => Self::Forged(choices.byte()),
            1..12 if is_bad => Self::Serving(choices.byte()),
            _ => Self::Known(choices.byte()),
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
