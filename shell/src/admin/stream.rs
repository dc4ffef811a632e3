//! Answers that go on until their reader, or what they tell of, ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

use crate::observe::event::TraceLine;
use crate::observe::record::RecordFeed;
use crate::observe::trace::TraceFeed;

/// What an answer that goes on is made of.
pub(super) enum Feed {
    /// A trace: a line of JSON for each event.
    Trace(TraceFeed),
    /// A recording.
    Record(RecordFeed),
}

/// A feed as an answer.
pub(super) struct StreamBody {
    feed: Feed,
    deadline: Option<Pin<Box<Sleep>>>,
    is_over: bool,
    /// Their number is limited.
    _permit: OwnedSemaphorePermit,
}

impl StreamBody {
    /// What comes by `feed`, for a time or until someone has enough.
    pub(super) fn new(feed: Feed, time: Option<Duration>, permit: OwnedSemaphorePermit) -> Self {
        let deadline = time.map(|time| Box::pin(sleep(time)));
        Self { feed, deadline, is_over: false, _permit: permit }
    }
}

impl Feed {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Self::Trace(feed) => feed.poll_lines(context).map(|more| more.map(lines)),
            Self::Record(feed) => feed.poll_bytes(context).map(|more| more.map(Bytes::from)),
        }
    }

    /// The last of it.
    fn end(&mut self, why: &str) -> Bytes {
        match self {
            Self::Trace(feed) => {
                let end = TraceLine::End { end: why.to_owned() };
                lines(feed.take_left_out().into_iter().chain([end]))
            }
            Self::Record(feed) => feed.end().into(),
        }
    }
}

impl Body for StreamBody {
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
        let end = if self.deadline.as_mut().is_some_and(is_late) {
            "its time is over"
        } else {
            match ready!(self.feed.poll(context)) {
                Some(more) => return Poll::Ready(Some(Ok(Frame::data(more)))),
                None => "flowgate stops, or hands its flows over to another process",
            }
        };
        self.is_over = true;
        Poll::Ready(Some(Ok(Frame::data(self.feed.end(end)))))
    }
}

fn lines(lines: impl IntoIterator<Item = TraceLine>) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        // What is written into memory is written, and plain data is JSON.
        if serde_json::to_writer(&mut text, &line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}
