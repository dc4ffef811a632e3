//! What fails in a [`FakeKernel`](super::FakeKernel), and when: as scripted, and else by chance.

use std::collections::VecDeque;

use flowgate_core::random::Random;
use nix::errno::Errno;

/// What ICMP can make of a connected socket's next call, whatever that is (`icmp_err_convert` in
/// Linux, for IPv4 and IPv6).
const ICMP: &[Errno] = &[
    Errno::ECONNREFUSED,
    Errno::EHOSTUNREACH,
    Errno::ENETUNREACH,
    Errno::EHOSTDOWN,
    Errno::ENONET,
    Errno::ENOPROTOOPT,
    Errno::EPROTO,
    Errno::EMSGSIZE,
    Errno::EACCES,
];

const OPEN: &[Errno] = &[
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOBUFS,
    Errno::ENOMEM,
    Errno::EADDRNOTAVAIL,
    Errno::EAGAIN,
    Errno::EPERM,
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
];

const SEND: &[Errno] = &[
    Errno::EINTR,
    Errno::EAGAIN,
    Errno::ENOBUFS,
    Errno::ENOMEM,
    Errno::EPERM,
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
    Errno::EIO,
    Errno::EINVAL,
    Errno::EMSGSIZE,
];

/// What can happen to a send.
#[derive(Clone, Copy, Debug)]
pub enum SendFault {
    /// The first message meets this.
    Error(Errno),
    /// The kernel takes no more than this many messages, though it had room.
    Part(usize),
}

/// The faults to come.
#[derive(Debug)]
pub struct Faults {
    random: Random,
    /// Of a thousand calls, how many meet a fault by chance.
    per_mille: u64,
    /// The fates of the next opens.
    pub opens: VecDeque<Option<Errno>>,
    /// The fates of the next sends.
    pub sends: VecDeque<Option<SendFault>>,
    /// The fates of the next watches.
    pub watches: VecDeque<Option<Errno>>,
    /// What every receive meets.
    pub receives: Option<Errno>,
}

impl Default for Faults {
    fn default() -> Self {
        Self::by_chance(0, 0)
    }
}

impl Faults {
    /// `per_mille` of a thousand calls fail; which ones, and how, grows from `seed`.
    pub const fn by_chance(seed: u64, per_mille: u64) -> Self {
        Self {
            random: Random::new(seed),
            per_mille,
            opens: VecDeque::new(),
            sends: VecDeque::new(),
            watches: VecDeque::new(),
            receives: None,
        }
    }

    /// Whatever was to fail does not.
    pub fn stop(&mut self) {
        *self = Self::default();
    }

    /// An ICMP error.
    pub fn any_icmp(&mut self) -> Errno {
        self.one_of(ICMP)
    }

    pub(super) fn on_open(&mut self) -> Option<Errno> {
        self.opens.pop_front().unwrap_or_else(|| self.strikes().then(|| self.one_of(OPEN)))
    }

    pub(super) fn on_receive(&mut self) -> Option<Errno> {
        self.receives.or_else(|| self.strikes().then_some(Errno::EINTR))
    }

    /// An error that arrives between two datagrams of one receive.
    pub(super) fn amid_receive(&mut self) -> Option<Errno> {
        self.strikes().then(|| self.one_of(ICMP))
    }

    pub(super) fn on_send(&mut self) -> Option<SendFault> {
        if let Some(scripted) = self.sends.pop_front() {
            return scripted;
        }
        if !self.strikes() {
            return None;
        }
        Some(match self.random.below(3) {
            0 => SendFault::Part(1 + self.random.below(4) as usize),
            _ => SendFault::Error(self.one_of(SEND)),
        })
    }

    pub(super) fn on_watch(&mut self) -> Option<Errno> {
        self.watches.pop_front().flatten()
    }

    fn strikes(&mut self) -> bool {
        self.random.below(1_000) < self.per_mille
    }

    fn one_of(&mut self, errors: &[Errno]) -> Errno {
        errors[self.random.below(errors.len() as u64) as usize]
    }
}
