//! The demo's clients: many sockets, one thread, a steady rate.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flowgate_core::Instant;
use hdrhistogram::Histogram;
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};

use super::message::Message;
use crate::sys::clock::Clock;

/// How many clients there are at any time.
pub(super) const CLIENTS: usize = 200;

/// How long one datagram is sent after another: 20,000 a second, which leaves most of a core idle.
const GAP: Duration = Duration::from_micros(50);

/// The most datagrams sent at once, to catch up after the thread had to wait for a core.
const MAX_BURST: usize = 64;

/// How long after one client another goes for a new one: each stays for `CLIENTS` times this.
const REPLACE_GAP: Duration = Duration::from_millis(25);

/// How soon the thread looks at the clock when nothing arrives.
const TICK: Duration = Duration::from_millis(1);

/// How long answers may take once nothing more is asked.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// What the clients saw since they started.
#[derive(Clone, Debug)]
pub(super) struct Experience {
    /// Clients that came, with those that went.
    pub(super) clients: u64,
    /// Datagrams they sent.
    pub(super) sent: u64,
    /// Datagrams they got back.
    pub(super) answered: u64,
    /// Those among the answered that another client asked for, or that another backend answered
    /// than the one before.
    pub(super) astray: u64,
    /// How long the answered took, in nanoseconds, for each backend.
    pub(super) round_trips: Vec<Histogram<u64>>,
}

/// Running clients. Dropping them ends them.
pub(super) struct Clients {
    is_stopped: Arc<AtomicBool>,
    experience: Arc<Mutex<Experience>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Clients {
    /// Starts clients of the balancer, behind which are `backends` backends.
    ///
    /// # Errors
    ///
    /// Those of opening sockets: no loopback interface, or out of descriptors.
    pub(super) fn start(balancer: SocketAddr, backends: usize, clock: Clock) -> io::Result<Self> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let experience = Arc::new(Mutex::new(Experience::none_yet(backends)));
        let mut crowd = Crowd {
            balancer,
            clock,
            poll: Poll::new()?,
            clients: Vec::with_capacity(CLIENTS),
            next_send: clock.now(),
            sender: 0,
            next_replacement: clock.now() + REPLACE_GAP,
            leaver: 0,
        };
        for _ in 0..CLIENTS {
            crowd.add(&mut lock(&experience))?;
        }
        // Opening sockets took a while, which is no time to catch up with.
        crowd.next_send = clock.now();
        let (flag, shared) = (is_stopped.clone(), experience.clone());
        let run = move || crowd.run(&flag, &shared);
        let thread = thread::Builder::new().name("clients".into()).spawn(run)?;
        Ok(Self { is_stopped, experience, thread: Some(thread) })
    }

    /// What they saw until now.
    pub(super) fn experience(&self) -> Experience {
        lock(&self.experience).clone()
    }

    /// Sends nothing more, and waits a little for what is not answered yet.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        self.is_stopped.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the clients' thread panicked")))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl Experience {
    /// That of clients who have done nothing.
    pub(super) fn none_yet(backends: usize) -> Self {
        Self {
            clients: 0,
            sent: 0,
            answered: 0,
            astray: 0,
            round_trips: vec![no_round_trips(); backends],
        }
    }
}

/// None: a histogram from a microsecond to ten seconds, with two digits.
pub(super) fn no_round_trips() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 10_000_000_000, 2).expect("the bounds are in order")
}

fn lock(experience: &Mutex<Experience>) -> MutexGuard<'_, Experience> {
    experience.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that the clients' thread has.
struct Crowd {
    balancer: SocketAddr,
    clock: Clock,
    poll: Poll,
    clients: Vec<Client>,
    next_send: Instant,
    /// Whose turn it is to send.
    sender: usize,
    next_replacement: Instant,
    /// Whose turn it is to go.
    leaver: usize,
}

struct Client {
    number: u64,
    socket: UdpSocket,
    in_flight: u64,
    /// The backend that answered it last.
    backend: Option<u8>,
}

impl Crowd {
    fn run(mut self, is_stopped: &AtomicBool, experience: &Mutex<Experience>) -> io::Result<()> {
        let mut events = Events::with_capacity(CLIENTS);
        let mut give_up_at = None;
        loop {
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = self.clock.now();
            let experience = &mut *lock(experience);
            for event in &events {
                self.receive(event.token(), experience);
            }
            if !is_stopped.load(Ordering::Relaxed) {
                self.send_what_is_due(now, experience);
                self.replace_who_is_due(now, experience);
            } else if experience.answered >= experience.sent
                || now >= *give_up_at.get_or_insert(now + REPLY_TIMEOUT)
            {
                return Ok(());
            }
        }
    }

    /// A new client, at the end of the line.
    fn add(&mut self, experience: &mut Experience) -> io::Result<()> {
        let client = self.open(self.clients.len(), experience)?;
        self.clients.push(client);
        Ok(())
    }

    /// A new client for a place in the line. Its port tells it from all others, so that it is a new
    /// flow to the balancer.
    fn open(&self, place: usize, experience: &mut Experience) -> io::Result<Client> {
        let mut socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        socket.connect(self.balancer)?;
        self.poll.registry().register(&mut socket, Token(place), Interest::READABLE)?;
        experience.clients += 1;
        Ok(Client { number: experience.clients, socket, in_flight: 0, backend: None })
    }

    fn send_what_is_due(&mut self, now: Instant, experience: &mut Experience) {
        for _ in 0..MAX_BURST {
            if self.next_send > now {
                return;
            }
            self.next_send += GAP;
            self.sender = (self.sender + 1) % self.clients.len();
            let client = &mut self.clients[self.sender];
            let message =
                Message { client: client.number, sent_at: self.clock.now(), backend: u8::MAX };
            // What the kernel does not take was never sent.
            if client.socket.send(&message.encode()).is_ok() {
                client.in_flight += 1;
                experience.sent += 1;
            }
        }
        // Too far behind to catch up gently: what was due is forgotten.
        self.next_send = now;
    }

    /// Lets the next client go for a new one, unless it still waits for an answer.
    fn replace_who_is_due(&mut self, now: Instant, experience: &mut Experience) {
        if self.next_replacement > now {
            return;
        }
        self.next_replacement = now + REPLACE_GAP;
        self.leaver = (self.leaver + 1) % self.clients.len();
        if self.clients[self.leaver].in_flight == 0 {
            // Without a descriptor to spare the old one stays.
            if let Ok(client) = self.open(self.leaver, experience) {
                self.clients[self.leaver] = client;
            }
        }
    }

    fn receive(&mut self, place: Token, experience: &mut Experience) {
        let client = &mut self.clients[place.0];
        let mut buffer = [0; Message::LENGTH + 1];
        while let Ok(length) = client.socket.recv(&mut buffer) {
            let message = Message::decode(&buffer[..length]);
            let histogram = message
                .and_then(|message| experience.round_trips.get_mut(usize::from(message.backend)));
            let (Some(message), Some(histogram)) = (message, histogram) else {
                continue;
            };
            histogram.saturating_record((self.clock.now() - message.sent_at).as_nanos() as u64);
            experience.answered += 1;
            client.in_flight = client.in_flight.saturating_sub(1);
            let last = client.backend.replace(message.backend);
            if message.client != client.number || last.is_some_and(|last| last != message.backend) {
                experience.astray += 1;
            }
        }
    }
}
