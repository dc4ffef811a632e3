//! Clients and backends that send without a pause, and see whether every datagram arrives once, where
//! it should, and in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use flowgate_core::random::Random;
use flowgate_tests::e2e::{Peer, eventually};

/// What a backend adds to what it sends back.
const MARK: usize = 1;

/// The head of each datagram: whose it is, and its number.
const HEAD: usize = 6;

/// How long nothing may come before what is missing is taken to be lost: less than others wait for the
/// load.
const SILENCE: Duration = Duration::from_secs(10);

/// What is to be done.
const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// What may be lost of what is under way.
pub(crate) const NOTHING: u8 = 0;
/// Answers: their flows move from one backend to another.
pub(crate) const ANSWERS: u8 = 1;
/// Anything: the process is killed.
pub(crate) const ANYTHING: u8 = 2;

/// What the test says to the load, and the load to the test.
#[derive(Default)]
pub(crate) struct Control {
    phase: AtomicU8,
    excuse: AtomicU8,
    is_idle: AtomicBool,
    /// How many datagrams have come to backends.
    pub(crate) delivered: AtomicU64,
    /// How many answers have come to clients.
    pub(crate) answered: AtomicU64,
    /// How often one came after one that was sent later.
    pub(crate) reordered: AtomicU64,
    /// Since when each backend is to get nothing more, by index.
    gone: Mutex<[Option<Instant>; 2]>,
    /// What has been lost, in words.
    lost: OnceLock<String>,
    /// What has happened, and when.
    happened: Mutex<Vec<(Instant, String)>>,
}

impl Control {
    /// What is under way from now on may be lost.
    pub(crate) fn excuse(&self, what: u8) {
        self.excuse.store(what, Ordering::SeqCst);
    }

    /// What is sent from now on must not come to a backend; or may again.
    pub(crate) fn set_gone(&self, backend: usize, is_gone: bool) {
        let since = is_gone.then(Instant::now);
        self.gone.lock().expect("nobody has panicked")[backend] = since;
    }

    /// Notes what happens now.
    pub(crate) fn note(&self, what: String) {
        self.happened.lock().expect("nobody has panicked").push((Instant::now(), what));
    }

    /// The last thing that had happened by then, and what came next.
    fn about(&self, at: Instant) -> String {
        let happened = self.happened.lock().expect("nobody has panicked");
        let next = happened.partition_point(|(when, _)| *when <= at);
        let before = next.checked_sub(1).and_then(|last| happened.get(last));
        let before = before.map(|(when, what)| format!("{:?} after {what:?}", at - *when));
        let after =
            happened.get(next).map(|(when, what)| format!("{:?} before {what:?}", *when - at));
        [before, after].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Sends nothing more, and waits until all has arrived that must.
    ///
    /// # Errors
    ///
    /// What has been lost.
    pub(crate) fn pause(&self) -> Result<(), String> {
        self.is_idle.store(false, Ordering::SeqCst);
        self.phase.store(PAUSE, Ordering::SeqCst);
        eventually("all has arrived, or is lost", || match self.lost.get() {
            Some(lost) => Some(Err(lost.clone())),
            None => self.is_idle.load(Ordering::SeqCst).then_some(Ok(())),
        })
    }

    /// Goes on.
    pub(crate) fn resume(&self) {
        self.phase.store(RUN, Ordering::SeqCst);
    }

    /// Ends when all has arrived that must.
    pub(crate) fn stop(&self) {
        self.phase.store(STOP, Ordering::SeqCst);
    }

    /// How many datagrams have come to backends, and to clients.
    pub(crate) fn arrived(&self) -> [u64; 2] {
        [&self.delivered, &self.answered].map(|count| count.load(Ordering::SeqCst))
    }
}

/// One datagram.
#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    /// When a backend had it, and which.
    delivered: Option<(Instant, usize)>,
    is_answered: bool,
    excuse: u8,
}

struct Client {
    peer: Peer,
    /// By number.
    sent: Vec<Sent>,
    /// The numbers of those that have not been answered, and may not be lost.
    open: Vec<usize>,
    /// How many of those there may be.
    window: usize,
}

/// All of them.
pub(crate) struct Load {
    clients: Vec<Client>,
    backends: Vec<Peer>,
    listener: SocketAddr,
    random: Random,
    /// What might be lost when this was last looked at.
    excuse: u8,
    /// The last number of each client that each backend got, and that came back from it.
    last: HashMap<(bool, usize, usize), usize>,
}

impl Load {
    /// Nothing sent yet.
    pub(crate) fn new(
        clients: Vec<Peer>,
        backends: Vec<Peer>,
        listener: SocketAddr,
        seed: u64,
    ) -> Self {
        let client = |(index, peer)| Client {
            peer,
            sent: Vec::new(),
            open: Vec::new(),
            window: 1 + index % 4,
        };
        let clients = clients.into_iter().enumerate().map(client).collect();
        let (random, last) = (Random::new(seed), HashMap::new());
        Self { clients, backends, listener, random, excuse: NOTHING, last }
    }

    /// Goes on until it is stopped.
    ///
    /// # Panics
    ///
    /// When a datagram is lost, comes twice, or to somebody else.
    pub(crate) fn run(mut self, control: &Control) {
        let mut last_news = Instant::now();
        loop {
            let phase = control.phase.load(Ordering::SeqCst);
            self.forgive(control.excuse.load(Ordering::SeqCst));
            if phase == RUN {
                self.send();
            }
            if self.receive(control) {
                last_news = Instant::now();
                continue;
            }
            let open = self.clients.iter().map(|client| client.open.len()).sum::<usize>();
            if phase != RUN && open == 0 {
                control.is_idle.store(true, Ordering::SeqCst);
                if phase == STOP {
                    return;
                }
            }
            if open > 0 && last_news.elapsed() > SILENCE {
                let lost = self.lost(control);
                let _ = control.lost.set(lost.clone());
                panic!("{lost}");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// What has been lost, and what happened about then.
    fn lost(&self, control: &Control) -> String {
        let of = |(index, client): (usize, &Client)| {
            let lost = |number: &usize| {
                let Sent { at, delivered, .. } = client.sent[*number];
                let what = match delivered {
                    Some((when, backend)) => format!(
                        "the answer of backend {backend}, which had it {:?} after it was sent, to",
                        when - at
                    ),
                    None => "no backend had".to_owned(),
                };
                let (count, about) = (client.sent.len(), control.about(at));
                format!("{what} number {number} of {count} of client {index}, sent {about}")
            };
            client.open.iter().map(lost).collect::<Vec<_>>()
        };
        let all: Vec<String> = self.clients.iter().enumerate().flat_map(of).collect();
        format!("{} lost:\n{}", all.len(), all.join("\n"))
    }

    fn forgive(&mut self, excuse: u8) {
        // What was sent before this is heard may have been under way while more was excused.
        let excuse = excuse.max(std::mem::replace(&mut self.excuse, excuse));
        for Client { sent, open, .. } in self.clients.iter_mut().filter(|_| excuse > NOTHING) {
            open.iter().for_each(|number| sent[*number].excuse = excuse);
            // Where only answers may be lost, the questions still have to arrive.
            open.retain(|number| excuse < ANYTHING && sent[*number].delivered.is_none());
        }
    }

    fn send(&mut self) {
        for (index, client) in self.clients.iter_mut().enumerate() {
            let room = client.window.saturating_sub(client.open.len());
            if room == 0 || self.random.below(4) == 0 {
                continue;
            }
            let mut datagram = || {
                let number = client.sent.len();
                let at = Instant::now();
                client.sent.push(Sent { at, delivered: None, is_answered: false, excuse: NOTHING });
                client.open.push(number);
                let mut bytes = (index as u16).to_be_bytes().to_vec();
                bytes.extend((number as u32).to_be_bytes());
                bytes.resize(200, number as u8);
                bytes
            };
            if room > 1 && self.random.below(8) == 0 {
                let train: Vec<u8> = (0..room).flat_map(|_| datagram()).collect();
                client.peer.send_train(&train, 200, self.listener);
            } else {
                let bytes = datagram();
                client.peer.send_to(&bytes, self.listener);
            }
        }
    }

    fn receive(&mut self, control: &Control) -> bool {
        let mut has_news = false;
        for index in 0..self.backends.len() {
            while let Some(question) = self.backends[index].receive_now() {
                let (client, number) = self.known(&question.bytes);
                let sent = &mut self.clients[client].sent[number];
                assert!(sent.delivered.is_none(), "{client}, {number}: a backend has it twice");
                sent.delivered = Some((Instant::now(), index));
                let gone = control.gone.lock().expect("nobody has panicked")[index];
                let is_too_late = gone.is_some_and(|since| since < sent.at);
                assert!(!is_too_late, "{client}, {number}: backend {index} is no more, and has it");
                if sent.excuse >= ANSWERS {
                    self.clients[client].open.retain(|open| *open != number);
                }
                control.delivered.fetch_add(1, Ordering::SeqCst);
                self.note_order((false, client, index), number, control);
                let answer = [&question.bytes[..], &[index as u8]].concat();
                self.backends[index].send_to(&answer, question.from);
                has_news = true;
            }
        }
        for index in 0..self.clients.len() {
            while let Some(answer) = self.clients[index].peer.receive_now() {
                assert_eq!(answer.from, self.listener);
                let (payload, mark) = answer.bytes.split_at(answer.bytes.len() - MARK);
                let (client, number) = self.known(payload);
                assert_eq!(client, index, "another client's answer");
                let Client { sent, open, .. } = &mut self.clients[client];
                let is_first = !std::mem::replace(&mut sent[number].is_answered, true);
                assert!(is_first, "{client}, {number}: an answer comes twice");
                assert!(sent[number].delivered.is_some(), "nobody has given this answer");
                open.retain(|open| *open != number);
                control.answered.fetch_add(1, Ordering::SeqCst);
                self.note_order((true, client, usize::from(mark[0])), number, control);
                has_news = true;
            }
        }
        has_news
    }

    /// Whose a datagram is, and its number: it is as it was sent.
    fn known(&self, bytes: &[u8]) -> (usize, usize) {
        let (head, rest) = bytes.split_at(HEAD);
        let client = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let number = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
        assert!(number < self.clients[client].sent.len(), "it was never sent");
        assert!(rest.iter().all(|byte| *byte == number as u8), "it has changed");
        (client, number)
    }

    fn note_order(&mut self, way: (bool, usize, usize), number: usize, control: &Control) {
        let last = self.last.entry(way).or_insert(number);
        if number < *last {
            control.reordered.fetch_add(1, Ordering::SeqCst);
        }
        *last = number.max(*last);
    }
}
