//! Giving everything over to a new process.

use std::path::PathBuf;
use std::sync::mpsc::Sender;

use flowgate_core::snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{info, warn};

use super::snapshot::{ProcessSnapshot, ServerSnapshot};
use super::successor::{self, Successor};
use crate::admin::http::HttpServer;
use crate::admin::request::Response;
use crate::admin::socket::ControlSocket;
use crate::control::signals;
use crate::control::supervisor::{Event, Supervisor};
use crate::sys::clock::Clock;

/// An upgrade that is under way.
pub(crate) struct Upgrade {
    /// Who waits for it.
    reply: Option<Sender<Response>>,
    /// The process that is to take over, once it has been started.
    pub(crate) successor: Option<u32>,
}

impl Supervisor {
    /// Starts the process that is to take over, and returns at once: it is an event when that could.
    /// Anyone who asked is answered when all is over.
    pub(crate) fn begin_upgrade(
        &mut self,
        binary: Option<PathBuf>,
        reply: Option<Sender<Response>>,
    ) {
        if let Err(reason) = self.may_upgrade() {
            match reply {
                // The caller may have gone.
                Some(reply) => drop(reply.send(Response::refused(reason))),
                None => warn!("no upgrade: {reason}"),
            }
            return;
        }
        let program = binary.unwrap_or_else(|| self.program.clone());
        info!(program = %program.display(), "upgrading");
        self.upgrade = Some(Upgrade { reply, successor: None });
        // What changes from now on is told when the flows are quiesced, and nothing else.
        let offer = snapshot::encode(&self.process_snapshot(self.server.followed_snapshot()));
        let changes = snapshot::encode(&self.process_snapshot(self.server.changes()));
        let (path, sender) = (self.path.clone(), self.sender.clone());
        let start = move || {
            let on_spawn = |pid| drop(sender.send(Event::SuccessorStarted(pid)));
            let outcome = Successor::start(&program, &path, [&offer, &changes], on_spawn);
            // The control plane may be on its way out already; then the new process is killed.
            let _ = sender.send(Event::SuccessorReady(outcome));
        };
        if let Err(error) = std::thread::Builder::new().name("upgrade".into()).spawn(start) {
            self.answer_upgrade(Err(format!("cannot start a thread: {error}")));
        }
    }

    fn may_upgrade(&self) -> Result<(), &'static str> {
        if !self.server.io().can_hand_over() {
            Err(
                "FLOWGATE_IO is \"portable\", which cannot pass flows on: stop flowgate and start it again",
            )
        } else if self.upgrade.is_some() {
            Err("an upgrade is under way already")
        } else if self.is_stopping() {
            Err("flowgate is stopping")
        } else if std::process::id() == 1 {
            Err("flowgate is the first process of a container, which ends with it: replace the \
                 container instead")
        } else {
            Ok(())
        }
    }

    /// Hands everything over to a process that could take over. Where that fails, all is as it was.
    pub(crate) fn hand_over(&mut self, mut successor: Successor) -> Result<(), String> {
        if self.is_stopping() {
            return Err("flowgate is stopping".into());
        }
        // Those who ask from now on wait in the listening sockets, for the process that serves in the end.
        self.http.iter().for_each(HttpServer::pause);
        self.control.iter().for_each(ControlSocket::pause);
        let admin = self.config.admin.http.filter(|_| self.http.is_some());
        let snapshot =
            ProcessSnapshot { http: admin, ..self.process_snapshot(ServerSnapshot::default()) };
        let clock = Clock::start();
        let (server, released) = self.server.release(true);
        let snapshot = snapshot::encode(&ProcessSnapshot { server, ..snapshot });
        let listeners = self.control.as_ref().map(|control| control.descriptor());
        let listeners = listeners.into_iter().chain(self.http.as_ref().map(HttpServer::descriptor));
        let descriptors: Vec<_> = listeners.chain(released.descriptors()).collect();
        match successor.hand_over(&snapshot, &descriptors) {
            Ok(()) => {
                drop(descriptors);
                let (pid, version) = (successor.pid(), successor.version());
                let sockets = released.sockets();
                let pause_ms = clock.uptime().as_secs_f64() * 1e3;
                info!(pid, version, sockets, pause_ms, "handed over");
                self.notifier.succeeded_by(pid);
                self.pass_on_signals(pid);
                self.answer_upgrade(Ok(vec![format!(
                    "process {pid}, version {version}, has taken over {sockets} sockets; nothing \
                     was forwarded for {:.1} ms",
                    clock.uptime().as_secs_f64() * 1e3
                )]));
                Ok(())
            }
            Err(error) => {
                drop(descriptors);
                self.server.take_back(released);
                self.http.iter().for_each(HttpServer::resume);
                self.control.iter().for_each(ControlSocket::resume);
                Err(error.to_string())
            }
        }
    }

    /// Has the new process do what this one was told to while it could not listen.
    fn pass_on_signals(&self, successor: u32) {
        for event in self.events.try_iter() {
            let signal = match event {
                Event::Signal(signals::Signal::Stop) => Signal::SIGTERM,
                Event::Signal(signals::Signal::StopNow) => Signal::SIGINT,
                _ => continue,
            };
            // It fails where the new process has ended.
            let _ = kill(Pid::from_raw(successor.cast_signed()), signal);
        }
    }

    /// Makes sure that no new process takes this one, which ends because it was told to, for one that
    /// has died.
    pub(crate) fn call_off_upgrade(&mut self) {
        while let Some(upgrade) = &mut self.upgrade {
            if let Some(pid) = upgrade.successor.take() {
                // It fails where the process has ended already.
                let _ = successor::kill_all(pid);
            }
            match self.events.recv() {
                Ok(Event::SuccessorStarted(pid)) => upgrade.successor = Some(pid),
                // If it could take over it is killed now.
                Ok(Event::SuccessorReady(_)) => {
                    self.answer_upgrade(Err("flowgate is stopping".into()));
                }
                // Nobody is answered any more.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Ends without closing anything that the new process has now.
    pub(crate) fn leave(&mut self) {
        self.leave_announced();
        if let Some(control) = self.control.take() {
            control.leave();
        }
        self.server.stop();
        self.server.join();
    }

    pub(crate) fn answer_upgrade(&mut self, outcome: Result<Vec<String>, String>) {
        let reply = self.upgrade.take().and_then(|upgrade| upgrade.reply);
        let response = match outcome {
            Ok(notes) => Response::Done { notes },
            Err(reason) => {
                self.server.forget_changes();
                warn!("no upgrade: {reason}; nothing has changed");
                Response::refused(reason)
            }
        };
        if let Some(reply) = reply {
            // The caller may have gone.
            let _ = reply.send(response);
        }
    }

    /// What this process is, with a server that is this.
    pub(crate) fn process_snapshot(&self, server: ServerSnapshot) -> ProcessSnapshot {
        ProcessSnapshot {
            clock_origin: self.clock.origin(),
            config: self.text.clone(),
            reloads: [self.reloads.ok, self.reloads.failed],
            server,
            probes: self.prober.snapshot(),
            control: self.control.as_ref().map(|control| control.path().to_owned()),
            http: self.config.admin.http.filter(|_| self.http.is_some()),
        }
    }

    /// What this process is, for people who look for a bug.
    pub(crate) fn snapshot(&self) -> Response {
        if !self.server.io().can_hand_over() {
            return Response::refused(
                "FLOWGATE_IO is \"portable\", of which there are no snapshots",
            );
        }
        let bytes = snapshot::encode(&self.process_snapshot(self.server.snapshot()));
        Response::Snapshot { hex: flowgate_config::hex::encode(&bytes) }
    }
}
