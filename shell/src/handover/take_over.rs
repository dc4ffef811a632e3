//! Taking everything over from the process that started this one.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use flowgate_config::Config;
use flowgate_core::snapshot;
use serde::de::DeserializeOwned;
use tracing::{error, info, warn};

use super::predecessor::{GiveUp, Predecessor, Step};
use super::prepared::PreparedListeners;
use super::snapshot::ProcessSnapshot;
use crate::admin::http::HttpServer;
use crate::admin::socket::ControlSocket;
use crate::admin::socket_path::default_path;
use crate::control::log::LevelHandle;
use crate::control::probe::ProbeSnapshot;
use crate::control::server::{BoundListeners, Server};
use crate::control::supervisor::{
    Event, Reloads, RunError, Runtime, Supervisor, handler, open_control_socket, open_http, sending,
};
use crate::datapath::worker::Adopted;
use crate::sys::clock::Clock;

/// Why this process has not taken over. It ends then, and the old one goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The old process did not go through with it.
    #[error(transparent)]
    GaveUp(#[from] GiveUp),
    /// This one cannot.
    #[error("cannot take over: {0}")]
    Unfit(String),
    /// The old process has died before it gave anything over, and this one cannot start alone.
    #[error(transparent)]
    Alone(#[from] RunError),
}

impl Supervisor {
    /// Takes over from the process that started this one.
    ///
    /// # Errors
    ///
    /// When that comes to nothing.
    pub fn take_over(
        path: &Path,
        config: (Config, String),
        level: LevelHandle,
        mut predecessor: Predecessor,
    ) -> Result<Self, TakeOverError> {
        let mut stage = Stage::Nothing;
        loop {
            let advanced = match predecessor.proceed()? {
                Step::Validate(bytes) => open(&bytes)
                    .and_then(|snapshot| Candidate::validate(path, &config, &level, snapshot))
                    .map(|candidate| Stage::Validated(Box::new(candidate))),
                Step::Read(bytes) => stage.read(&bytes),
                Step::Stage(descriptors) => stage.stage(descriptors),
                Step::Serve(descriptors) => {
                    return match stage.serve(descriptors, || predecessor.serving()) {
                        Some(supervisor) => Ok(supervisor),
                        None => {
                            info!("the old flowgate has died before it gave anything over");
                            Ok(Self::start(path, config, level)?)
                        }
                    };
                }
            };
            stage = match advanced {
                Ok(stage) => stage,
                Err(reason) => {
                    predecessor.refuse(vec![reason.clone()]);
                    return Err(TakeOverError::Unfit(reason));
                }
            };
        }
    }
}

/// How far it is.
enum Stage {
    Nothing,
    /// It could take over, as far as the latest snapshot goes.
    Validated(Box<Candidate>),
    /// It has everything.
    Staged(Box<StagedState>),
}

impl Stage {
    fn read(self, bytes: &[u8]) -> Result<Self, String> {
        match self {
            Self::Validated(candidate) => {
                Ok(Self::Validated(Box::new(candidate.updated(open(bytes)?)?)))
            }
            _ => Err("the old flowgate gives a state that it has not offered".into()),
        }
    }

    fn stage(self, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        match self {
            Self::Validated(candidate) => {
                Ok(Self::Staged(Box::new(candidate.stage(descriptors.into_iter().map(Some))?)))
            }
            _ => Err("the old flowgate gives descriptors before the state".into()),
        }
    }

    /// Serves. Where the old process has died on the way, with what has come until then: flows
    /// without a socket get another one. `None`: with nothing.
    fn serve(self, descriptors: Vec<OwnedFd>, says_so: impl FnOnce()) -> Option<Supervisor> {
        match self {
            Self::Nothing => None,
            Self::Validated(candidate) => {
                warn!(
                    sockets = descriptors.len(),
                    "the old flowgate has died; going on with what it gave over"
                );
                match candidate.stage(descriptors.into_iter().map(Some)) {
                    Ok(staged) => Some(staged.serve(says_so)),
                    Err(reason) => {
                        error!("cannot use the kept state: {reason}; starting without it");
                        None
                    }
                }
            }
            Self::Staged(staged) => Some(staged.serve(says_so)),
        }
    }
}

/// A process that could go on where another one stops.
pub(super) struct Candidate {
    supervisor: Supervisor,
    /// What the other one works by.
    config: Config,
    /// What it is, but for its shards.
    snapshot: ProcessSnapshot,
    prepared: PreparedListeners,
}

impl Candidate {
    /// Finds out whether this process could go on with what a snapshot says, and makes ready what can
    /// be. What the other one has is not touched.
    pub(super) fn validate(
        path: &Path,
        (config, text): &(Config, String),
        level: &LevelHandle,
        mut snapshot: ProcessSnapshot,
    ) -> Result<Self, String> {
        let theirs = flowgate_config::parse(&snapshot.config, "the running configuration")
            .map_err(|errors| errors.to_string())?;
        let prepared =
            PreparedListeners::of(&mut snapshot.server).map_err(|error| error.to_string())?;
        let fail = |error: RunError| error.to_string();

        let clock = Clock::with_origin(snapshot.clock_origin);
        let runtime = Runtime::start(config.clone(), clock, snapshot.server.hosts.clone());
        let runtime = runtime.map_err(fail)?;
        // What it had found is what the same sources say.
        let theirs = theirs.with_found(&runtime.found);
        let handler = handler(runtime.sender.clone());
        let control = match control_path(config) == snapshot.control {
            true => None,
            false => open_control_socket(config, &handler).map_err(|e| e.to_string())?,
        };
        let http = match config.admin.http {
            Some(address) if Some(address) != snapshot.http => {
                Some(open_http(address, handler).map_err(fail)?)
            }
            _ => None,
        };
        let on_end = sending(&runtime.sender, Event::WorkerEnded);
        let options = runtime.options(Vec::new());
        let mut server = Server::without_listeners(config.workers, clock, options, on_end)
            .map_err(|error| error.to_string())?;
        // Loading a program into the kernel takes longer than nobody may serve.
        server.load_fast_path(config).map_err(|error| error.to_string())?;
        let mut supervisor = runtime
            .supervise(path, text.clone(), level.clone(), server, snapshot.probes.clone())
            .map_err(fail)?;
        (supervisor.control, supervisor.http) = (control, http);
        Ok(Self { supervisor, config: theirs, snapshot, prepared })
    }

    /// Takes in what the other one has become since.
    fn updated(self, mut snapshot: ProcessSnapshot) -> Result<Self, String> {
        let prepared = self.prepared.updated(&mut snapshot.server);
        let prepared = prepared.map_err(|error| error.to_string())?;
        Ok(Self { snapshot, prepared, ..self })
    }

    /// Puts all descriptors into their places.
    pub(super) fn stage(
        self,
        descriptors: impl IntoIterator<Item = Option<OwnedFd>>,
    ) -> Result<StagedState, String> {
        let Self { mut supervisor, config, snapshot, prepared } = self;
        let mut descriptors = descriptors.into_iter();
        let control = snapshot.control.and_then(|path| Some((path, descriptors.next()??)));
        let http = snapshot.http.and_then(|_| descriptors.next()?);
        let server = &mut supervisor.server;
        let shards = server
            .restore(snapshot.server, &config, prepared, descriptors)
            .map_err(|error| error.to_string())?;
        let bound = server.bind(&supervisor.config).map_err(|error| error.to_string())?;
        let [ok, failed] = snapshot.reloads;
        supervisor.reloads = Reloads { ok, failed };
        let (former, probes, http) = (config, snapshot.probes, http.map(Into::into));
        Ok(StagedState { supervisor, former, shards, bound, probes, control, http })
    }
}

/// A process that has everything to go on with, and nothing to say yet.
pub(super) struct StagedState {
    supervisor: Supervisor,
    /// What the other one worked by.
    former: Config,
    shards: Vec<Vec<Adopted>>,
    /// What our own configuration wants besides.
    bound: BoundListeners,
    /// What the other one's probes had found, of which its server may not have heard yet.
    probes: Vec<ProbeSnapshot>,
    control: Option<(PathBuf, OwnedFd)>,
    http: Option<TcpListener>,
}

impl StagedState {
    /// Goes on where the other one stopped and says so, then goes over to the configuration of this
    /// process. From now on there is nobody else to serve: whatever fails is no reason to end.
    pub(super) fn serve(self, says_so: impl FnOnce()) -> Supervisor {
        let Self { mut supervisor, former, shards, bound, probes, control, http } = self;
        supervisor.server.serve(shards);
        says_so();
        supervisor.server.all_probed(&probes);
        let wanted = std::mem::replace(&mut supervisor.config, former);
        // With what is known of them the backends are probed as they were, and only then otherwise.
        supervisor.update_probes();
        supervisor.server.go_over(&wanted, bound);
        supervisor.config = wanted;
        supervisor.update_probes();
        if let Err(error) = supervisor.resume_admin_of(control, http) {
            error!("{error}");
        }
        supervisor.notifier.ready();
        supervisor.keep_listeners();
        supervisor.notifier.forget_flows();
        supervisor
    }
}

impl Supervisor {
    /// Lets operators in, by the listening sockets of the former process where they are the same.
    fn resume_admin_of(
        &mut self,
        control: Option<(PathBuf, OwnedFd)>,
        http: Option<TcpListener>,
    ) -> Result<(), RunError> {
        let handler = handler(self.sender.clone());
        if self.control.is_none() {
            self.control = match control {
                Some((path, listener))
                    if Some(&path) == control_path(&self.config).as_ref() && path.exists() =>
                {
                    Some(ControlSocket::adopt(&path, listener, handler.clone())?)
                }
                // Someone has removed the former one's file: nobody would find it.
                _ => open_control_socket(&self.config, &handler)?,
            };
        }
        if let (None, Some(address)) = (&self.http, self.config.admin.http) {
            let opened = match http {
                Some(listener) => HttpServer::adopt(listener, handler),
                None => HttpServer::start(address, handler),
            };
            self.http = Some(opened.map_err(|source| RunError::Http { address, source })?);
        }
        Ok(())
    }
}

/// Where the control socket is to be.
fn control_path(config: &Config) -> Option<PathBuf> {
    Some(config.admin.socket.clone().unwrap_or_else(default_path))
}

fn open<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    snapshot::decode(bytes).map_err(|error| format!("the state of the old flowgate: {error}"))
}
