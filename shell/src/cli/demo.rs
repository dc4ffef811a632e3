//! `flowgate demo`: backends, the balancer and clients in one process, to see it work.
//!
//! Everything is real: the balancer runs as `flowgate run` would run it, the datagrams go through
//! the loopback interface, and every figure is measured, by the balancer or by the clients.

mod backends;
mod clients;
mod message;
mod paint;
mod sample;
mod screen;
mod summary;
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use self::backends::{Backends, Kind};
use self::clients::{CLIENTS, Clients};
use self::sample::{Sample, Stretch};
use self::screen::Screen;
use super::{Failure, human};
use crate::admin::http::HttpServer;
use crate::admin::request::{Handler, Request, Response};
use crate::control::server::{Server, ServerOptions, WorkerEnd};
use crate::control::signals;
use crate::sys::clock::Clock;

/// How long the slow backend sleeps before it answers what has come meanwhile.
const NAP: Duration = Duration::from_millis(2);

/// Weights that show in the shares, and one backend that shows in the round trips.
const KINDS: [Kind; 4] = [
    Kind { weight: 4, nap: None },
    Kind { weight: 3, nap: None },
    Kind { weight: 2, nap: None },
    Kind { weight: 1, nap: Some(NAP) },
];

/// What the main thread waits for, besides the time.
enum Event {
    Interrupted,
    WorkerEnded(WorkerEnd),
    /// The status page wants to know how things stand.
    Asked(Sender<Response>),
}

/// Runs for so long, or until it is interrupted.
pub(super) fn run(length: Option<Duration>) -> Result<(), Failure> {
    let (sender, events) = mpsc::channel();
    // Before the screen opens, so that no signal leaves a terminal without its cursor.
    tell_of_signals(sender.clone())?;
    let demo = Demo::start(sender.clone())?;
    let page = HttpServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), handler(sender))
        .map_err(|error| Failure(format!("cannot serve the status page on 127.0.0.1: {error}")))?;
    let start = demo.sample();
    let mut screen = Screen::open(demo.title(page.address()), length, start.clone())?;
    demo.show_on(&mut screen, length, &events)?;
    drop(page);
    let end = demo.end()?;
    screen.close(|paint| summary::summary(Stretch { from: &start, to: &end }, paint))?;
    if end.clients.answered == 0 {
        return Err(Failure(
            "nothing came back; if no drops are listed above, a firewall or a sandbox may keep UDP \
             from 127.0.0.1"
                .into(),
        ));
    }
    Ok(())
}

/// Makes an event of each signal that asks to end.
fn tell_of_signals(sender: Sender<Event>) -> Result<(), Failure> {
    signals::listen(move |_| {
        // The main thread may be on its way out already.
        let _ = sender.send(Event::Interrupted);
    })?;
    Ok(())
}

/// Answers the status page, which asks for nothing else, by asking the main thread.
fn handler(sender: Sender<Event>) -> Handler {
    Arc::new(move |request| {
        let (reply, answer) = mpsc::channel();
        let is_asked = request == Request::Status && sender.send(Event::Asked(reply)).is_ok();
        let answer = is_asked.then(|| answer.recv().ok()).flatten();
        answer.unwrap_or_else(|| Response::refused("the demo serves its status only"))
    })
}

/// All that runs. Dropped in this order: clients, balancer, backends.
struct Demo {
    clock: Clock,
    clients: Clients,
    server: Server,
    balancer: SocketAddr,
    _backends: Backends,
}

impl Demo {
    fn start(sender: Sender<Event>) -> Result<Self, Failure> {
        let clock = Clock::start();
        let backends = Backends::start(&KINDS)
            .map_err(|error| Failure(format!("cannot start backends on 127.0.0.1: {error}")))?;
        let config = configuration(backends.addresses());
        let config = flowgate_config::parse(&config, "the demo's configuration")?;
        let server = Server::start(&config, clock, ServerOptions::default(), move |end| {
            // The main thread may be on its way out already.
            let _ = sender.send(Event::WorkerEnded(end));
        })?;
        let address = server.addresses().next();
        let balancer = address.ok_or_else(|| Failure("the balancer has no listener".into()))?;
        let clients = Clients::start(balancer, KINDS.len(), clock).map_err(|error| {
            Failure(format!(
                "cannot open {CLIENTS} client sockets: {error}; the demo needs the loopback \
                 interface and about 500 open files (ulimit -n)"
            ))
        })?;
        Ok(Self { clock, clients, server, balancer, _backends: backends })
    }

    fn title(&self, page: SocketAddr) -> String {
        format!(
            "Flowgate demo: {CLIENTS} clients → balancer {} → {} backends\nStatus page: http://{page}/",
            self.balancer,
            KINDS.len(),
        )
    }

    /// Shows how things stand, until the time is over or a signal comes.
    fn show_on(
        &self,
        screen: &mut Screen,
        length: Option<Duration>,
        events: &Receiver<Event>,
    ) -> Result<(), Failure> {
        let start = self.clock.now();
        let mut next = start + screen.period();
        while length.is_none_or(|length| next <= start + length) {
            match events.recv_timeout(next.saturating_since(self.clock.now())) {
                Err(RecvTimeoutError::Timeout) => {
                    screen.show(self.sample())?;
                    next += screen.period();
                }
                Ok(Event::Asked(reply)) => {
                    // The caller may have gone.
                    let _ = reply.send(Response::Status(self.server.status(&self.clock)));
                }
                Ok(Event::WorkerEnded(end)) => return Err(Failure(format!("a worker {end}"))),
                Ok(Event::Interrupted) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    fn sample(&self) -> Sample {
        // The clients first: what they saw answered, the balancer has counted.
        let clients = self.clients.experience();
        let report = self.server.report().into_iter().next();
        let balancer = report.map(|listener| listener.figures).unwrap_or_default();
        Sample { at: self.clock.now(), balancer, clients }
    }

    /// Ends the clients, and says how things stand once all is answered that will be. The moment is
    /// that when the clients were told, since rates are not of the wait for what is lost.
    fn end(mut self) -> Result<Sample, Failure> {
        let at = self.clock.now();
        self.clients.stop()?;
        Ok(Sample { at, ..self.sample() })
    }
}

/// The balancer's configuration. A flow of a client that went soon ends, so that flows come and go.
fn configuration(backends: &[SocketAddr]) -> String {
    let backends = backends.iter().zip(KINDS).map(|(address, Kind { weight, .. })| {
        format!("    {{ address = \"{address}\", weight = {weight} }},\n")
    });
    format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
cluster = "echo"
max_flows = 1024

[cluster.echo]
balance = "round-robin"
idle_timeout = "1s"
backends = [
{}]
"#,
        backends.collect::<String>()
    )
}
