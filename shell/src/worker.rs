//! A worker: one thread, its poll loop, and a shard of every listener.

use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use flowgate_core::{Instant, ManagerInput};
use mio::{Events, Poll};

use crate::clock::Clock;
use crate::kernel::{Linux, Socket};
use crate::report::ShardReport;
use crate::shard::{Readiness, Shard};
use crate::sys::mmsg::Arena;
use crate::token::Token;

/// How many bursts one turn can hold.
const ARENA_SLOTS: usize = 256;

/// How many events one poll can return.
const EVENTS: usize = 1_024;

/// What other threads ask of a worker.
#[derive(Debug)]
pub enum Command {
    /// Take no new flows; end when the last one has, or at `deadline`.
    Drain {
        /// When the flows that are left are closed.
        deadline: Instant,
    },
    /// End now.
    Stop,
    /// Say how things stand: one report for each shard.
    Report(Sender<Vec<ShardReport>>),
}

/// All that one thread runs.
pub struct Worker {
    poll: Poll,
    events: Events,
    kernel: Linux,
    clock: Clock,
    arena: Arena,
    shards: Vec<Shard<Linux>>,
    commands: Receiver<Command>,
    is_stopped: bool,
}

impl Worker {
    /// A worker without shards. The waker of `poll` must be registered under [`Token::Wake`].
    ///
    /// # Errors
    ///
    /// When the poll cannot be duplicated: out of descriptors.
    pub fn new(poll: Poll, clock: Clock, commands: Receiver<Command>) -> io::Result<Self> {
        Ok(Self {
            kernel: Linux::new(poll.registry().try_clone()?),
            poll,
            events: Events::with_capacity(EVENTS),
            clock,
            arena: Arena::new(ARENA_SLOTS),
            shards: Vec::new(),
            commands,
            is_stopped: false,
        })
    }

    /// Adds the shard of a listener.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub fn add_shard(
        &mut self,
        listener: Socket,
        manager: flowgate_core::UdpManager,
    ) -> io::Result<()> {
        let shard = self.shards.len() as u32;
        self.kernel.register_listener(&listener, Token::Listener { shard })?;
        self.shards.push(Shard::new(shard, listener, manager));
        Ok(())
    }

    /// Runs until it is stopped, or drained.
    ///
    /// Sockets are read before timeouts fire, so that a flow whose datagrams wait is not closed
    /// for being idle.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait(2)`, which a running kernel does not give.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_stopped && !self.is_drained() {
            self.wait()?;
            let now = self.clock.now();
            self.take_events(now);
            for shard in self.shards.iter_mut().filter(|shard| shard.has_work()) {
                shard.turn(&mut self.kernel, &mut self.arena, now);
            }
            self.fire_timeouts(now);
        }
        Ok(())
    }

    /// Waits for events until the first deadline, or not at all while there is work left.
    fn wait(&mut self) -> io::Result<()> {
        let timeout = if self.shards.iter().any(Shard::has_work) {
            Some(Duration::ZERO)
        } else {
            let deadline =
                self.shards.iter().filter_map(|shard| shard.poll_timeout()).map(|d| d.at).min();
            deadline.map(|at| at.saturating_since(self.clock.now()))
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn take_events(&mut self, now: Instant) {
        let mut is_woken = false;
        for event in &self.events {
            let token = Token::from(event.token());
            let (Token::Listener { shard } | Token::Upstream { shard, .. }) = token else {
                is_woken = true;
                continue;
            };
            let readiness = Readiness {
                readable: event.is_readable(),
                writable: event.is_writable(),
                error: event.is_error(),
            };
            if let Some(shard) = self.shards.get_mut(shard as usize) {
                shard.on_event(token, readiness, &mut self.kernel, now);
            }
        }
        if is_woken {
            self.take_commands(now);
        }
    }

    fn take_commands(&mut self, now: Instant) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Drain { deadline } => {
                    for shard in &mut self.shards {
                        shard.handle(ManagerInput::Drain { deadline }, &mut self.kernel, now);
                    }
                }
                Command::Stop => self.is_stopped = true,
                Command::Report(reply) => {
                    // Whoever asked may have gone; then nobody needs the answer.
                    let _ = reply.send(self.shards.iter().map(ShardReport::of).collect());
                }
            }
        }
    }

    fn fire_timeouts(&mut self, now: Instant) {
        for shard in &mut self.shards {
            if shard.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
                shard.handle(ManagerInput::Timeout, &mut self.kernel, now);
            }
        }
    }

    fn is_drained(&self) -> bool {
        !self.shards.is_empty() && self.shards.iter().all(|shard| shard.manager().is_drained())
    }
}
