//! A bounded channel from workers to whoever watches. Sending never blocks: what finds no room is the
//! sender's to leave out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Makes a channel in which so many bytes may wait, as senders count them.
pub(crate) fn channel<T>(capacity: usize) -> (Tx<T>, Rx<T>) {
    let (sender, receiver) = unbounded_channel();
    let shared = Arc::new(Shared { capacity, ..Shared::default() });
    (Tx { sender, shared: Arc::clone(&shared) }, Rx { receiver, shared })
}

/// The workers' end.
#[derive(Debug)]
pub(crate) struct Tx<T> {
    sender: UnboundedSender<(T, usize)>,
    shared: Arc<Shared>,
}

/// The other end. Once it is dropped nobody listens.
#[derive(Debug)]
pub(crate) struct Rx<T> {
    receiver: UnboundedReceiver<(T, usize)>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    capacity: usize,
    /// How many bytes wait.
    waiting: AtomicUsize,
    /// How much has been left out, and that has not been said yet.
    left_out: AtomicU64,
}

impl<T> Tx<T> {
    /// Sends something of so many bytes. Says whether there was room for it.
    pub(crate) fn send(&self, item: T, bytes: usize) -> bool {
        let before = self.shared.waiting.fetch_add(bytes, Ordering::Relaxed);
        let is_sent =
            before + bytes <= self.shared.capacity && self.sender.send((item, bytes)).is_ok();
        if !is_sent {
            self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_sent
    }

    /// Half of the room.
    pub(crate) fn much_room(&self) -> usize {
        self.shared.capacity / 2
    }

    /// Whether half of the room is free.
    pub(crate) fn has_much_room(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) <= self.much_room()
    }

    /// Notes that so much was left out.
    pub(crate) fn leave_out(&self, count: u64) {
        self.shared.left_out.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl<T> Clone for Tx<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), shared: Arc::clone(&self.shared) }
    }
}

/// Whether it is the same channel.
impl<T> PartialEq for Tx<T> {
    fn eq(&self, other: &Self) -> bool {
        self.sender.same_channel(&other.sender)
    }
}

impl<T> Eq for Tx<T> {}

impl<T> Rx<T> {
    /// What comes next; nothing when all senders have gone.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.receiver.poll_recv(context).map(|received| {
            let (item, bytes) = received?;
            self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
            Some(item)
        })
    }

    /// How much has been left out since this was asked last.
    pub(crate) fn take_left_out(&self) -> u64 {
        self.shared.left_out.swap(0, Ordering::Relaxed)
    }
}
