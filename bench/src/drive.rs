//! The engine of a measurement: one loop that sends, serves the backends and receives.
//!
//! Clients and backends take turns on one thread that never sleeps. So they need no more than one core, hand over
//! without a context switch, and know exactly how many datagrams are under way.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::backends::{Backends, Behaviour};
use crate::clients::{Clients, stamps};
use crate::payload::Payload;
use crate::train::Train;
use crate::workload::{Pace, Workload};

/// Sends in a row, during which nobody looks after the receivers.
const SENDS: usize = 64;

/// When nothing has arrived for so long, what was under way is lost.
const LOSS_TIMEOUT: Duration = Duration::from_millis(20);

/// The last datagrams of a measurement are waited for so long after the one before.
const DRAIN: Duration = Duration::from_millis(100);

/// Latencies are kept to three significant digits, up to this many nanoseconds.
const MAX_LATENCY: u64 = 60_000_000_000;

/// What came of the datagrams of one phase.
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    /// From the intended send time to the arrival, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Given up, so that they no longer fill the window; they still count if they arrive after all.
    forgiven: u64,
    last_arrival: Instant,
}

impl Tally {
    fn new(now: Instant) -> Self {
        let latency =
            Histogram::new_with_max(MAX_LATENCY, 3).expect("the bounds of the histogram are valid");
        Tally { sent: 0, arrived: 0, latency, forgiven: 0, last_arrival: now }
    }

    fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.arrived + self.forgiven)
    }

    fn forgive(&mut self) {
        self.forgiven += self.under_way();
    }

    fn count(&mut self, payload: Payload, train: &Train<'_>, epoch: Instant) {
        self.last_arrival = Instant::now();
        let now = self.last_arrival.duration_since(epoch).as_nanos() as u64;
        self.arrived += train.datagrams as u64;
        for (stamp, datagrams) in stamps(payload, train) {
            self.latency.saturating_record_n(now.saturating_sub(stamp), datagrams as u64);
        }
    }
}

/// Drives one workload against one target.
pub(crate) struct Driver<'w> {
    workload: &'w Workload,
    clients: Clients,
    backends: Backends,
    /// How often each datagram arrives.
    copies: usize,
    tally: Tally,
}

impl<'w> Driver<'w> {
    /// Sends to `targets`, behind which are `backends`, at which this many `copies` of each datagram arrive.
    pub(crate) fn new(
        workload: &'w Workload,
        targets: &[SocketAddr],
        backends: Backends,
        copies: usize,
    ) -> io::Result<Self> {
        Ok(Self::of(workload, Clients::new(workload, targets)?, backends, copies))
    }

    /// The same with clients that are there already.
    pub(crate) fn of(
        workload: &'w Workload,
        clients: Clients,
        backends: Backends,
        copies: usize,
    ) -> Self {
        Driver { workload, clients, backends, copies, tally: Tally::new(Instant::now()) }
    }

    /// Sends now and then until something comes through; answers whether it did in time.
    pub(crate) fn knock(&mut self, timeout: Duration) -> io::Result<bool> {
        let begin = Instant::now();
        let mut next = begin;
        while self.tally.arrived == 0 && begin.elapsed() < timeout {
            if Instant::now() >= next {
                self.send(next)?;
                next += LOSS_TIMEOUT;
            }
            self.receive()?;
        }
        Ok(self.tally.arrived > 0)
    }

    /// Sends for `duration`, and longer if there are clients that have not had their turn; then waits for what is under
    /// way. The rest of the run starts with a clean slate.
    pub(crate) fn warm_up(&mut self, duration: Duration) -> io::Result<()> {
        self.tally = Tally::new(Instant::now());
        self.run(duration)?;
        // At a fixed pace a new client is part of what is measured, and its flow is not opened in advance.
        if let Pace::Window(_) = self.workload.pace {
            let everyone = self.turn() * self.workload.clients as u64;
            while self.tally.sent < everyone {
                self.run(LOSS_TIMEOUT)?;
            }
        }
        self.drain()
    }

    /// Sends for `duration`, and answers how many datagrams arrived in that time.
    pub(crate) fn measure(&mut self, duration: Duration) -> io::Result<u64> {
        self.tally = Tally::new(Instant::now());
        self.run(duration)?;
        Ok(self.tally.arrived)
    }

    /// Receives until nothing is under way or nothing comes any more.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let begin = Instant::now();
        while self.tally.sent > self.tally.arrived {
            self.receive()?;
            if self.tally.last_arrival.max(begin).elapsed() > DRAIN {
                break;
            }
        }
        Ok(())
    }

    /// What came of the datagrams since [`Driver::measure`] began.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    fn run(&mut self, duration: Duration) -> io::Result<()> {
        let begin = Instant::now();
        let mut paced = 0;
        loop {
            let now = Instant::now();
            if now - begin >= duration {
                return Ok(());
            }
            match self.workload.pace {
                Pace::Window(size) => self.fill(size, now)?,
                Pace::PerSecond(rate) => paced = self.keep_pace(begin, now, rate, paced)?,
            }
            self.receive()?;
        }
    }

    /// Sends while the window has room.
    fn fill(&mut self, window: u64, now: Instant) -> io::Result<()> {
        let turn = self.turn();
        if self.tally.under_way() + turn > window && now - self.tally.last_arrival > LOSS_TIMEOUT {
            self.tally.forgive();
            self.tally.last_arrival = now;
        }
        for _ in 0..SENDS / self.workload.run {
            if self.tally.under_way() + turn > window {
                break;
            }
            self.send(now)?;
        }
        Ok(())
    }

    /// Sends what is due, and stamps it with when it was due: a late send counts as latency.
    fn keep_pace(
        &mut self,
        begin: Instant,
        now: Instant,
        rate: u64,
        mut paced: u64,
    ) -> io::Result<u64> {
        for _ in 0..SENDS {
            let due = begin + Duration::from_nanos(paced * 1_000_000_000 / rate);
            if due > now {
                break;
            }
            self.send(due)?;
            paced += 1;
        }
        Ok(paced)
    }

    fn send(&mut self, at: Instant) -> io::Result<()> {
        self.tally.sent += (self.clients.send(at)? * self.workload.train * self.copies) as u64;
        Ok(())
    }

    /// How many datagrams are to arrive when one client has had its turn.
    fn turn(&self) -> u64 {
        (self.workload.run * self.workload.train * self.copies) as u64
    }

    fn receive(&mut self) -> io::Result<()> {
        let Driver { clients, backends, tally, workload, .. } = self;
        let epoch = clients.epoch();
        backends.serve(|train| tally.count(workload.payload, train, epoch))?;
        if workload.behaviour == Behaviour::Echo {
            clients.receive(|train| tally.count(workload.payload, train, epoch))?;
        }
        Ok(())
    }
}
