//! Backends that are found: a thread that follows files, HTTP servers and SRV records.
//!
//! Anyone who starts a [`Discoverer`] is told the whole set of a cluster when it is first known and
//! whenever it changes. While a source is away, says what makes no sense or says that there is
//! nobody, the last good set stands, and the log says so once. That set is also kept on disk, so
//! that a process that starts while its source is away serves what was good last, and says so.

mod file;
mod http;
mod keep;
mod srv;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flowgate_config::{BackendsFrom, FoundBackends, Member, Place};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::control::resolve::lookup::Lookups;
use crate::control::resolve::retry_after;
use crate::control::task::ControlTask;
use keep::Kept;

pub(crate) use keep::directory;

/// Where the backends of each cluster that has some to be found are, by the cluster's name.
pub type DiscoverySources = BTreeMap<String, BackendsFrom>;

/// A cluster, and all that was found of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// The cluster's name.
    pub cluster: String,
    /// Its set, which replaces the former one whole.
    pub members: Vec<Member>,
}

/// Follows sources, on a thread of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Discoverer {
    /// None while it is being dropped.
    sources: Option<UnboundedSender<DiscoverySources>>,
    known: Arc<Known>,
    task: ControlTask,
}

impl Discoverer {
    /// Starts without sources. Good sets are kept in `directory`, if there is one. `on_found` is
    /// called on the discoverer's thread.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start(
        directory: Option<PathBuf>,
        on_found: impl Fn(Discovered) + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_lookups(Lookups::of_system(), directory, on_found)
    }

    /// The same, asking nobody but these DNS servers for SRV records. Each has `timeout` to answer.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start_with(
        servers: &[SocketAddr],
        timeout: Duration,
        directory: Option<PathBuf>,
        on_found: impl Fn(Discovered) + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_lookups(Lookups::of_servers(servers, timeout), directory, on_found)
    }

    fn start_lookups(
        lookups: Lookups,
        directory: Option<PathBuf>,
        on_found: impl Fn(Discovered) + Send + 'static,
    ) -> io::Result<Self> {
        let (sources, orders) = unbounded_channel();
        let known = Arc::new(Known::default());
        let duty = Duty {
            lookups,
            directory,
            known: Arc::clone(&known),
            on_found: Mutex::new(Box::new(on_found)),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(follow_all(orders, Arc::new(duty)));
            // A resolver that hangs is not waited for.
            runtime.shutdown_background();
        };
        let task = ControlTask::spawn_blocking("discovery", run)?;
        Ok(Self { sources: Some(sources), known, task })
    }

    /// Follows these from now on, and no others. What was followed before and has not changed goes
    /// on as it is.
    pub fn set_sources(&self, sources: DiscoverySources) {
        self.known.lock().retain(|cluster, found| sources.get(cluster) == Some(&found.from));
        if let Some(sender) = &self.sources {
            // Fails only where the thread has ended, by a panic that has been printed.
            let _ = sender.send(sources);
        }
    }

    /// As [`set_sources`](Self::set_sources), then waits until something is known of each, or it is
    /// known that nothing is, but not longer than `timeout`. Returns what is known then. All of it
    /// is told to `on_found` too.
    pub fn find_now(&self, sources: DiscoverySources, timeout: Duration) -> FoundBackends {
        self.set_sources(sources.clone());
        // A task that is on its way out may tell of a former source once more.
        let is_its = |cluster: &String, tried: &Tried| sources.get(cluster) == Some(&tried.from);
        let has_untried = |known: &mut BTreeMap<String, Tried>| {
            let is_tried = |cluster| known.get(cluster).is_some_and(|tried| is_its(cluster, tried));
            !sources.keys().all(is_tried)
        };
        let waited = self.known.tried.wait_timeout_while(self.known.lock(), timeout, has_untried);
        drop(waited);
        let known = self.known.lock();
        let its = known.iter().filter(|(cluster, tried)| is_its(cluster, tried));
        let good = its.filter_map(|(cluster, tried)| {
            tried.members.as_ref().map(|members| (cluster.clone(), members.clone()))
        });
        good.collect()
    }
}

impl Drop for Discoverer {
    fn drop(&mut self) {
        self.task.release();
        self.sources = None;
        self.task.join();
    }
}

/// What has come of the sources that have been tried, shared with the thread.
#[derive(Debug, Default)]
struct Known {
    found: Mutex<BTreeMap<String, Tried>>,
    tried: Condvar,
}

/// A source that has been tried at least once.
#[derive(Debug)]
struct Tried {
    from: BackendsFrom,
    /// None: nothing has come of it.
    members: Option<Vec<Member>>,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Tried>> {
        // Each change of the map is one call, which leaves it whole.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the tasks of all clusters share.
struct Duty {
    lookups: Lookups,
    directory: Option<PathBuf>,
    known: Arc<Known>,
    on_found: Mutex<Box<dyn Fn(Discovered) + Send>>,
}

/// Keeps one task for each cluster, until nobody can send sources any more.
async fn follow_all(mut orders: UnboundedReceiver<DiscoverySources>, duty: Arc<Duty>) {
    let mut tasks = BTreeMap::<String, (BackendsFrom, AbortHandle)>::new();
    while let Some(sources) = orders.recv().await {
        tasks.retain(|cluster, (from, task)| {
            let stays = sources.get(cluster) == Some(&*from);
            if !stays {
                task.abort();
            }
            stays
        });
        for (cluster, from) in sources {
            tasks.entry(cluster).or_insert_with_key(|cluster| {
                let followed = Followed::new(cluster.clone(), from.clone(), Arc::clone(&duty));
                (from, tokio::spawn(followed.follow()).abort_handle())
            });
        }
    }
}

/// The source of one cluster, and what is known of it.
struct Followed {
    cluster: String,
    from: BackendsFrom,
    duty: Arc<Duty>,
    kept: Option<Kept>,
    members: Option<Vec<Member>>,
    is_in_trouble: bool,
    failures: u32,
}

impl Followed {
    fn new(cluster: String, from: BackendsFrom, duty: Arc<Duty>) -> Self {
        let kept = duty.directory.as_ref().map(|at| Kept::new(at, &cluster, &from.place));
        Self { cluster, from, duty, kept, members: None, is_in_trouble: false, failures: 0 }
    }

    async fn follow(mut self) {
        match self.from.place.clone() {
            Place::File(path) => file::follow(&path, &mut self).await,
            Place::Http { url, interval } => http::follow(&url, interval, &mut self).await,
            Place::Srv(name) => srv::follow(&name, &mut self).await,
        }
    }

    /// Takes in what the source says, or why it says nothing. Says how long to wait, where it
    /// failed, before it is tried again.
    fn learn(&mut self, outcome: Result<Vec<Member>, String>) -> Option<Duration> {
        let said = outcome.and_then(|members| match members.is_empty() {
            true if !self.from.allow_empty => {
                Err("it has no backends; allow_empty = true would let that be".to_owned())
            }
            _ => Ok(members),
        });
        let (mut wait, mut is_new) = (None, false);
        match said {
            Ok(members) => {
                self.recovered();
                is_new = self.take(members);
            }
            Err(why) => {
                self.trouble(&why);
                self.failures = self.failures.saturating_add(1);
                wait = Some(jittered(retry_after(self.failures)));
            }
        }
        let tried = Tried { from: self.from.clone(), members: self.members.clone() };
        self.duty.known.lock().insert(self.cluster.clone(), tried);
        self.duty.known.tried.notify_all();
        // Nobody waits for the disk.
        if is_new {
            self.keep();
        }
        wait
    }

    /// Writes down a good set for the next start.
    fn keep(&self) {
        if let (Some(kept), Some(members)) = (&self.kept, &self.members)
            && let Err(error) = kept.write(members)
        {
            warn!("cannot keep a good set of backends for the next start: {error}");
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
        if std::mem::take(&mut self.is_in_trouble) {
            let (cluster, from) = (&self.cluster, &self.from.place);
            info!(?cluster, %from, "the source of a cluster's backends is good again");
        }
    }

    fn trouble(&mut self, why: &str) {
        if std::mem::replace(&mut self.is_in_trouble, true) {
            return;
        }
        let (cluster, from) = (self.cluster.clone(), self.from.place.clone());
        if self.members.is_some() {
            warn!(?cluster, %from, "no good set of backends: {why}; keeping the last good one");
            return;
        }
        match self.kept.as_ref().and_then(Kept::read) {
            Some((members, path)) => {
                warn!(
                    ?cluster, %from, ?path, backends = members.len(),
                    "no good set of backends: {why}; serving the last good one, as it was kept"
                );
                self.take(members);
            }
            None => {
                warn!(?cluster, %from, "no good set of backends: {why}; there is no former one")
            }
        }
    }

    /// Has a set in force. Says whether it is another one than before.
    fn take(&mut self, members: Vec<Member>) -> bool {
        if self.members.as_ref() == Some(&members) {
            return false;
        }
        self.members = Some(members.clone());
        let cluster = self.cluster.clone();
        info!(?cluster, from = %self.from.place, backends = members.len(), "found backends");
        let on_found = self.duty.on_found.lock().unwrap_or_else(PoisonError::into_inner);
        on_found(Discovered { cluster, members });
        true
    }
}

/// About that long: many that ask the same source do not ask at the same time.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.9 + fastrand::f64() / 5.0)
}
