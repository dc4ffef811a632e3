//! Backends by name: a task that resolves host names and keeps what they resolve to fresh.
//!
//! A name is looked up again when its answer has lived its time (TTL), at least every five minutes
//! and at most once a second. Anyone who starts a [`Resolver`] is told the addresses of a name when
//! they are first known and whenever they change; never that there are none. While a name cannot
//! be resolved, whatever the reason, the last good answer stands, the log says so once, and the
//! lookup is tried again after 1, 2, 4, ... up to 30 seconds.
//!
//! Some names give another part of their addresses each time. So an address that an answer leaves out
//! goes on being used for a while, the cluster's `hold`, as long as the answer has others that were
//! known: a name that goes over to other addresses altogether means it.
//!
//! Workers never wait for any of this: they see no names, only addresses.

pub(super) mod lookup;
mod state;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::control::task::ControlTask;
use crate::sys::clock::Clock;
use lookup::Lookups;
use state::{NameState, News};

pub(crate) use state::retry_after;
pub use state::{MAX_ADDRESSES, MAX_TTL, MIN_TTL};

/// A host's name as the configuration spells it.
pub type HostName = String;

/// For how long an address is kept that a name gives no more, by name. Not at all where it is not
/// said.
type Holds = Arc<Mutex<BTreeMap<HostName, Duration>>>;

/// How many names are looked up at the same time. The others wait their turn.
const CONCURRENT_LOOKUPS: usize = 32;

/// What a name resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name.
    pub name: HostName,
    /// Its IPv4 and IPv6 addresses, sorted, all different: at least one, at most
    /// [`MAX_ADDRESSES`], and none that no backend can have, such as `0.0.0.0`.
    pub addresses: Vec<IpAddr>,
}

/// What is known of a name.
#[derive(Clone, Debug, Default)]
pub struct KnownName {
    /// The last good answer; empty if there has been none.
    pub addresses: Vec<IpAddr>,
    /// Why it does not resolve now, and a clock that was started when that began.
    pub trouble: Option<(String, Clock)>,
}

/// Keeps the addresses of names fresh. Dropping it stops it.
#[derive(Debug)]
pub struct Resolver {
    /// None while it is being dropped.
    names: Option<UnboundedSender<BTreeSet<HostName>>>,
    known: Arc<Known>,
    holds: Holds,
    task: ControlTask,
}

impl Resolver {
    /// Starts without names. Names are resolved as the system does it: by `/etc/hosts`, then by the
    /// servers of `/etc/resolv.conf`, in both cases as the file is at that time.
    ///
    /// `on_answer` must not block: it is called on the thread that tasks of the control plane share.
    ///
    /// # Errors
    ///
    /// When the system is out of threads or descriptors.
    pub fn start(on_answer: impl Fn(Answer) + Send + 'static) -> io::Result<Self> {
        Self::start_lookups(Lookups::of_system(), on_answer)
    }

    /// The same, asking nobody but these DNS servers. Each has `timeout` to answer a question, twice.
    ///
    /// # Errors
    ///
    /// When the system is out of threads or descriptors.
    pub fn start_with(
        servers: &[SocketAddr],
        timeout: Duration,
        on_answer: impl Fn(Answer) + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_lookups(Lookups::of_servers(servers, timeout), on_answer)
    }

    fn start_lookups(
        lookups: Lookups,
        on_answer: impl Fn(Answer) + Send + 'static,
    ) -> io::Result<Self> {
        let (names, orders) = unbounded_channel();
        let known = Arc::new(Known::default());
        let holds = Holds::default();
        let duty = Duty {
            lookups,
            known: Arc::clone(&known),
            holds: Arc::clone(&holds),
            clock: Clock::start(),
            on_answer: Mutex::new(on_answer),
            turns: Semaphore::new(CONCURRENT_LOOKUPS),
        };
        let task = ControlTask::spawn("resolver", follow(orders, Arc::new(duty)))?;
        Ok(Self { names: Some(names), known, holds, task })
    }

    /// Keeps these names fresh from now on, and no others. A name that was among the names before
    /// keeps its answer, and is not told again.
    pub fn set_names(&self, names: BTreeSet<HostName>) {
        self.known.lock().retain(|name, _| names.contains(name));
        if let Some(sender) = &self.names {
            // Fails only where the task has ended, by a panic that has been printed.
            let _ = sender.send(names);
        }
    }

    /// Keeps addresses that a name gives no more for so long, from its next answer on: those of a
    /// name that gives another part of its addresses each time would come and go.
    pub fn set_holds(&self, holds: BTreeMap<HostName, Duration>) {
        *self.holds.lock().unwrap_or_else(PoisonError::into_inner) = holds;
    }

    /// As [`Resolver::set_names`], then waits until all of them have been looked up, with success
    /// or without, but not longer than `timeout`. Returns what is known then, by name; names that
    /// have no good answer yet are missing. All of it is told to `on_answer` too.
    pub fn resolve_now(
        &self,
        names: BTreeSet<HostName>,
        timeout: Duration,
    ) -> BTreeMap<HostName, Vec<IpAddr>> {
        self.set_names(names.clone());
        let has_untried = |known: &mut BTreeMap<HostName, KnownName>| {
            names.iter().any(|name| !known.contains_key(name))
        };
        let waited = self.known.tried.wait_timeout_while(self.known.lock(), timeout, has_untried);
        drop(waited);
        self.known()
    }

    /// What is known now: the last good answers of the names that have one.
    pub fn known(&self) -> BTreeMap<HostName, Vec<IpAddr>> {
        let known = self.known.lock();
        let good = known.iter().filter(|(_, known)| !known.addresses.is_empty());
        good.map(|(name, known)| (name.clone(), known.addresses.clone())).collect()
    }

    /// All names that have been looked up, whether they resolve or not.
    pub fn names(&self) -> BTreeMap<HostName, KnownName> {
        self.known.lock().clone()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.release();
        self.names = None;
        self.task.join();
    }
}

/// What is known of all names that have been looked up, shared with the task.
#[derive(Debug, Default)]
struct Known {
    answers: Mutex<BTreeMap<HostName, KnownName>>,
    tried: Condvar,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, KnownName>> {
        // Each change of the map is one call, which leaves it whole.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, name: &HostName, state: &NameState) {
        let mut names = self.lock();
        let before = names.get(name).and_then(|known| known.trouble.as_ref()).map(|(_, at)| *at);
        let since = |why: &str| (why.to_owned(), before.unwrap_or_else(Clock::start));
        let trouble = state.trouble().map(since);
        names.insert(name.clone(), KnownName { addresses: state.addresses(), trouble });
    }
}

/// What the tasks of all names share.
struct Duty<F> {
    lookups: Lookups,
    known: Arc<Known>,
    holds: Holds,
    clock: Clock,
    on_answer: Mutex<F>,
    turns: Semaphore,
}

/// Keeps one task for each name, until nobody can send names any more.
async fn follow<F: Fn(Answer) + Send + 'static>(
    mut orders: UnboundedReceiver<BTreeSet<HostName>>,
    duty: Arc<Duty<F>>,
) {
    let mut tasks = BTreeMap::<HostName, AbortHandle>::new();
    while let Some(names) = orders.recv().await {
        tasks.retain(|name, task| {
            let stays = names.contains(name);
            if !stays {
                task.abort();
                duty.known.lock().remove(name);
            }
            stays
        });
        for name in names {
            tasks.entry(name).or_insert_with_key(|name| {
                tokio::spawn(keep_fresh(name.clone(), Arc::clone(&duty))).abort_handle()
            });
        }
    }
    tasks.values().for_each(AbortHandle::abort);
}

/// Looks a name up again and again, until it is aborted.
async fn keep_fresh<F: Fn(Answer) + Send>(name: HostName, duty: Arc<Duty<F>>) {
    let mut state = NameState::default();
    loop {
        let outcome = {
            let _turn = duty.turns.acquire().await;
            duty.lookups.look_up(&name).await
        };
        let hold = duty.holds.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        let step = state.learn(outcome, duty.clock.uptime(), hold.unwrap_or_default());
        duty.known.learn(&name, &state);
        duty.known.tried.notify_all();
        match step.event {
            Some(News::Trouble(why)) if state.addresses().is_empty() => {
                warn!(name = name.as_str(), "cannot resolve a backend's name: {why}; trying again");
            }
            Some(News::Trouble(why)) => {
                warn!(
                    name = name.as_str(),
                    "cannot resolve a backend's name: {why}; keeping the last answer"
                );
            }
            Some(News::Recovered) => info!(name = name.as_str(), "a backend's name resolves again"),
            None => {}
        }
        if let Some(addresses) = step.changed {
            let found = addresses.iter().map(|ip| ip.to_string()).collect::<Vec<_>>().join(", ");
            info!(name = name.as_str(), addresses = found, "resolved a backend's name");
            if state.left_out() > 0 {
                warn!(
                    name = name.as_str(),
                    "a backend's name has too many addresses: the first {MAX_ADDRESSES} are used, \
                     {} are left out; give its backends several names",
                    state.left_out()
                );
            }
            let on_answer = duty.on_answer.lock().unwrap_or_else(PoisonError::into_inner);
            on_answer(Answer { name: name.clone(), addresses });
        }
        tokio::time::sleep(step.wait).await;
    }
}
