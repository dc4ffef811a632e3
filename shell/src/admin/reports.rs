//! Asks how things stand, rarely, and renders the answer, once, for everybody who wants it.

use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, interval};
use tracing::error;

use super::exposition::Format;
use super::history::{self, History};
use crate::admin::request::{Handler, Request, Response};
use crate::admin::status::StatusDocument;
use crate::sys::clock::Clock;

/// How long a report is as good as a new one.
const FRESH: Duration = Duration::from_millis(50);

/// How many may wait for a report.
const MAX_WAITING: usize = super::server::MAX_CONNECTIONS;

/// What a report can be rendered as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The document itself.
    Json,
    /// Its figures for Prometheus.
    Metrics(Format),
    /// What the process has kept of the last minutes.
    History,
    /// The reasons why no new flows can be served, a line each; empty: they can.
    Ready,
}

/// A rendered report, or the reasons why there is none.
pub(super) type Rendered = Result<Bytes, Vec<String>>;

/// A cache of reports, from which all who ask are served.
pub(super) struct Reports {
    asks: mpsc::Sender<Ask>,
}

struct Ask {
    view: View,
    reply: oneshot::Sender<Rendered>,
}

impl Reports {
    /// Opens it, on the runtime of the caller.
    ///
    /// Where `keeps_history`, it asks by itself now and then, and has the last minutes to show.
    pub(super) fn start(handler: Handler, keeps_history: bool) -> Self {
        let (asks, inbox) = mpsc::channel(MAX_WAITING);
        tokio::spawn(answer_all(inbox, handler, keeps_history));
        Self { asks }
    }

    /// How things stand, at most [`FRESH`] ago.
    pub(super) async fn get(&self, view: View) -> Rendered {
        let (reply, rendered) = oneshot::channel();
        // Fails only where the task has ended, which it does after all who ask.
        let _ = self.asks.send(Ask { view, reply }).await;
        rendered.await.unwrap_or_else(|_| Err(vec!["shutting down".into()]))
    }
}

/// One after the other, so that reports are rendered in the order in which they were made.
async fn answer_all(mut inbox: mpsc::Receiver<Ask>, handler: Handler, keeps_history: bool) {
    let clock = Clock::start();
    let mut last: Option<Report> = None;
    let mut history = History::default();
    let mut period = keeps_history.then(|| interval(history::PERIOD));
    // The first tick of an interval comes at once, and there is nothing to keep yet.
    period.iter_mut().for_each(Interval::reset);
    loop {
        let asked = tokio::select! {
            asked = inbox.recv() => asked,
            () = tick(&mut period) => {
                let report = Report::new(ask(&handler).await, clock.uptime());
                if let Ok(document) = &last.insert(report).document {
                    history.take(document, clock.uptime());
                }
                continue;
            }
        };
        let Some(Ask { view, reply }) = asked else { return };
        if reply.is_closed() {
            continue;
        }
        if view == View::History {
            let _ = reply.send(Ok(history.json(clock.uptime()).into()));
            continue;
        }
        let report = match last.take() {
            Some(report) if clock.uptime() - report.made < FRESH => report,
            _ => Report::new(ask(&handler).await, clock.uptime()),
        };
        // The caller may have gone.
        let _ = reply.send(last.insert(report).render(view));
    }
}

/// Waits for the next period, if there are any.
async fn tick(period: &mut Option<Interval>) {
    match period {
        Some(period) => drop(period.tick().await),
        None => std::future::pending().await,
    }
}

/// Asks on a thread that may wait.
async fn ask(handler: &Handler) -> Result<StatusDocument, Vec<String>> {
    let handler = handler.clone();
    match tokio::task::spawn_blocking(move || handler(Request::Status)).await {
        Ok(Response::Status(document)) => Ok(document),
        Ok(Response::Refused { reasons }) => Err(reasons),
        Ok(_) => Err(vec![
            "asked for its status, Flowgate answered something else, which is a bug".into(),
        ]),
        Err(failure) => {
            error!("reading the status failed, which is a bug: {failure}");
            Err(vec!["reading the status failed, which is a bug; see the log".into()])
        }
    }
}

/// What was reported, and what has been rendered of it.
struct Report {
    made: Duration,
    document: Result<StatusDocument, Vec<String>>,
    rendered: Vec<(View, Bytes)>,
}

impl Report {
    const fn new(document: Result<StatusDocument, Vec<String>>, made: Duration) -> Self {
        Self { made, document, rendered: Vec::new() }
    }

    fn render(&mut self, view: View) -> Rendered {
        if let Some((_, bytes)) = self.rendered.iter().find(|(rendered, _)| *rendered == view) {
            return Ok(bytes.clone());
        }
        let document = self.document.as_ref().map_err(Clone::clone)?;
        let bytes = match view {
            View::Json => serde_json::to_vec(document).map_err(|error| vec![error.to_string()])?,
            // The process has that, not the document.
            View::History => return Ok(Bytes::new()),
            View::Ready => document.not_ready().concat().into_bytes(),
            View::Metrics(format) => super::metrics::render(document, format).into_bytes(),
        };
        let bytes = Bytes::from(bytes);
        self.rendered.push((view, bytes.clone()));
        Ok(bytes)
    }
}
