//! Answers that go on until their reader, or what they tell of, ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

use crate::observe::event::TraceLine;
use crate::observe::trace::TraceFeed;

/// A trace as an answer: a line of JSON for each event.
pub(super) struct TraceBody {
    feed: TraceFeed,
    deadline: Option<Pin<Box<Sleep>>>,
    is_over: bool,
    /// Their number is limited.
    _permit: OwnedSemaphorePermit,
}

impl TraceBody {
    /// What comes by `feed`, for a time or until someone has enough.
    pub(super) fn new(
        feed: TraceFeed,
        time: Option<Duration>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let deadline = time.map(|time| Box::pin(sleep(time)));
        Self { feed, deadline, is_over: false, _permit: permit }
    }

    /// The last lines.
    fn end(&mut self, why: &str) -> Bytes {
        self.is_over = true;
        let end = TraceLine::End { end: why.to_owned() };
        lines(self.feed.take_left_out().into_iter().chain([end]))
    }
}

impl Body for TraceBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let is_late = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(context).is_ready();
        let bytes = if self.deadline.as_mut().is_some_and(is_late) {
            self.end("its time is over")
        } else {
            match ready!(self.feed.poll_lines(context)) {
                Some(more) => lines(more),
                None => self.end("flowgate stops, or hands its flows over to another process"),
            }
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

fn lines(lines: impl IntoIterator<Item = TraceLine>) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        // What is written into memory is written; what has no names in it but text is JSON.
        if serde_json::to_writer(&mut text, &line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}
