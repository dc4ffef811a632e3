//! Serves connections: who may ask, what is asked, what is answered.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use tracing::warn;

use super::super::line;
use super::super::request::{Handler, Request, Response};
use super::{LONGEST_REQUEST, MOST_SERVED, PATIENCE};
use crate::sys::clock::Deadline;

/// The places in which connections are served.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: Mutex<Taken>,
    fewer: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    /// Connections that are served.
    served: usize,
    /// Of these, those whose request has been read and whose answer is not yet written.
    answering: usize,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default(), fewer: Condvar::new() }
    }

    /// Waits until no answer is being given, but no longer than `limit`.
    pub(super) fn wait_for_answers(&self, limit: Duration) {
        let is_answering = |taken: &mut Taken| taken.answering > 0;
        // Whether it was long enough makes no difference.
        let _ = self.fewer.wait_timeout_while(self.taken(), limit, is_answering);
    }

    /// The figures are right after every step, so that a panic elsewhere spoils nothing.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken, until it is dropped.
struct Place {
    places: Arc<Places>,
    is_answering: bool,
}

impl Place {
    fn take(places: &Arc<Places>) -> Option<Self> {
        let mut taken = places.taken();
        let is_free = taken.served < places.most;
        taken.served += usize::from(is_free);
        is_free.then(|| Self { places: Arc::clone(places), is_answering: false })
    }

    fn begin_answer(&mut self) {
        self.is_answering = true;
        self.places.taken().answering += 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.served -= 1;
        taken.answering -= usize::from(self.is_answering);
        self.places.fewer.notify_all();
    }
}

/// Has a connection served if it may be and there is room, and closes it with the reason otherwise.
pub(super) fn admit(stream: UnixStream, places: &Arc<Places>, handler: &Handler) {
    if let Err(reason) = check_peer(&stream) {
        return turn_away(&stream, reason);
    }
    let Some(place) = Place::take(places) else {
        return turn_away(
            &stream,
            format!("busy: {MOST_SERVED} others are being served; try again in a moment"),
        );
    };
    let handler = Arc::clone(handler);
    let serve = move || serve(&stream, place, &handler);
    // Without a thread, the connection closes and the place is free again.
    if let Err(error) = std::thread::Builder::new().name("control".into()).spawn(serve) {
        warn!("cannot start a thread for a request: {error}");
    }
}

/// Whether whoever connected may ask: root, and the user that this process runs as.
///
/// The mode of the file says the same; but it can be changed.
fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let us = geteuid().as_raw();
    let peer = getsockopt(stream, PeerCredentials)
        .map_err(|error| format!("the system does not say who you are: {error}"))?;
    if peer.uid() == 0 || peer.uid() == us {
        return Ok(());
    }
    warn!(user = peer.uid(), process = peer.pid(), "refused on the control socket");
    let whom = if us == 0 { "root".to_owned() } else { format!("user {us} and root") };
    Err(format!("you are user {}; only {whom} may control this flowgate", peer.uid()))
}

/// Answers without a request, and without waiting: an answer this short fits into any buffer.
fn turn_away(mut stream: &UnixStream, reason: String) {
    let answer = encode(&Response::refused(reason));
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(&answer));
}

/// Reads one request, and answers it. What fails ends with the connection.
fn serve(stream: &UnixStream, mut place: Place, handler: &Handler) {
    let request = match line::read_line(stream, LONGEST_REQUEST, &Deadline::after(PATIENCE)) {
        Ok(line) if line.is_empty() => return,
        Ok(line) => Request::parse(&line),
        Err(error) => match error.kind() {
            io::ErrorKind::FileTooLarge => {
                Err(format!("the request is longer than {LONGEST_REQUEST} bytes"))
            }
            io::ErrorKind::TimedOut => {
                Err(format!("the request took longer than {} s", PATIENCE.as_secs()))
            }
            _ => return,
        },
    };
    place.begin_answer();
    let response = request.map_or_else(Response::refused, |request| handler(request));
    // Whoever does not read his answer goes without.
    let _ = line::write_all(stream, &encode(&response), &Deadline::after(PATIENCE));
}

fn encode(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap_or_else(|error| {
        warn!("cannot write an answer as JSON: {error}");
        Vec::new()
    });
    line.push(b'\n');
    line
}
