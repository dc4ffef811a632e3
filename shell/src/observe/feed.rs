//! A bounded channel from workers to a reader. Sending never blocks: what finds no room is the
//! sender's to leave out. Nor does it wake anybody, which would cost a worker a system call each time:
//! the reader looks again and again.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Sleep, sleep};

/// From one look to the next.
const PERIOD: Duration = Duration::from_millis(20);

/// Makes a channel in which this many bytes may wait, as senders count them.
pub(crate) fn channel<T>(capacity: usize) -> (Tx<T>, Rx<T>) {
    let (sender, receiver) = unbounded_channel();
    let shared = Arc::new(Shared { capacity, ..Shared::default() });
    (Tx { sender, shared: Arc::clone(&shared) }, Rx { receiver, shared, next_look: None })
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
    next_look: Option<Pin<Box<Sleep>>>,
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
    /// Sends something of this many bytes. Says whether there was room for it.
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
        loop {
            let next = self.look();
            if next.is_ready() {
                return next;
            }
            let next_look = self.next_look.get_or_insert_with(|| Box::pin(sleep(PERIOD)));
            ready!(next_look.as_mut().poll(context));
            self.next_look = None;
        }
    }

    /// The same of what is there already. Nobody is told when there is more.
    pub(crate) fn look(&mut self) -> Poll<Option<T>> {
        match self.receiver.try_recv() {
            Ok((item, bytes)) => {
                self.shared.waiting.fetch_sub(bytes, Ordering::Relaxed);
                Poll::Ready(Some(item))
            }
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        }
    }

    /// How much has been left out since this was asked last.
    pub(crate) fn take_left_out(&self) -> u64 {
        self.shared.left_out.swap(0, Ordering::Relaxed)
    }
}
