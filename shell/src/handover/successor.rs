//! The old process's side: the process that is to take over, started, asked, and trusted only once
//! it serves.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowgate_core::snapshot;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::channel::{Channel, ChannelError, FromNew, FromOld};
use super::protocol::{Event, Old, OldDoes};
use crate::sys::clock::{Clock, IoDeadline};

/// How long the new process may take until it says that it runs, and again to find that it could
/// take over. Meanwhile the old one serves. It may have to wait for names to be resolved.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long it may take to read the state in the rehearsal, while the old process serves.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long each step may take while nobody serves: a multiple of what it has taken to read the whole
/// state before, within these limits. What is told then is what has changed since, which is little as
/// a rule and all of it at most.
const READINGS: u32 = 4;
const MIN_STEP_TIMEOUT: Duration = Duration::from_millis(300);
const MAX_STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// What tells a program which sockets are meant for it, or which watchdog, and means this process.
const OUR_OWN: [&str; 4] = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_PID"];

/// Why the new process has not taken over. It is dead then, and nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It does not start.
    #[error("cannot start {program}: {source}")]
    NotStarted {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It says that it cannot.
    #[error("the new flowgate cannot take over: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// It has ended.
    #[error(
        "the new flowgate has ended while it was to {doing} ({status}); is it a flowgate that can \
         take over? Its log may say more"
    )]
    Ended {
        /// What it was to do.
        doing: &'static str,
        /// How it ended.
        status: String,
    },
    /// It does not do what it should.
    #[error("the new flowgate was to {doing}, and {error}; it has been killed")]
    Lost {
        /// What it was to do.
        doing: &'static str,
        /// What it did instead.
        error: ChannelError,
    },
}

/// The process that is to take over. Dropped, it is killed, unless it serves.
#[derive(Debug)]
pub struct Successor {
    child: Child,
    channel: Channel,
    protocol: Old,
    version: String,
    /// How long each step may take while nobody serves.
    step_timeout: Duration,
}

impl Successor {
    /// Starts `program` with the configuration at `config`, shows it how things stand, and waits
    /// until it says that it could take over. `on_spawn` is called with its process id first: a
    /// process that ends meanwhile must kill it, or it goes on in its stead.
    ///
    /// That is rehearsed before, with a process that is killed afterwards and goes one step further:
    /// it reads the state, as if the old one had released everything. So a program that hangs then, or falls over,
    /// does that while all is served.
    ///
    /// # Errors
    ///
    /// When it does not; it is dead then.
    pub fn start(
        program: &Path,
        config: &Path,
        [offer, changes]: [&[u8]; 2],
        on_spawn: impl Fn(u32),
    ) -> Result<Self, Failure> {
        let mut understudy = Self::candidate(program, config, offer, &on_spawn)?;
        let bytes = changes.len() as u64;
        understudy.tell(
            "read the state in a rehearsal",
            &FromOld::State { bytes },
            REHEARSAL_TIMEOUT,
            |channel, deadline| channel.send_bytes(changes, deadline),
        )?;
        understudy.expect("read the state in a rehearsal", OldDoes::Pass, REHEARSAL_TIMEOUT)?;
        drop(understudy);
        Self::candidate(program, config, offer, &on_spawn)
    }

    /// A process that says that it could take over.
    fn candidate(
        program: &Path,
        config: &Path,
        offer: &[u8],
        on_spawn: impl Fn(u32),
    ) -> Result<Self, Failure> {
        let not_started =
            |source| Failure::NotStarted { program: program.display().to_string(), source };
        let (channel, theirs) = Channel::pair().map_err(not_started)?;
        let mut command = Command::new(program);
        command.arg("run").arg("--take-over").arg(config);
        command.stdin(Stdio::from(theirs.into_descriptor())).stdout(Stdio::inherit());
        // A group of its own, so that nothing is left of it where a program between the two has started
        // it.
        command.process_group(0);
        OUR_OWN.iter().for_each(|name| {
            command.env_remove(name);
        });
        let child = command.spawn().map_err(not_started)?;
        on_spawn(child.id());
        // Holds the other end of the channel, which must close when the child ends.
        drop(command);
        let (protocol, version) = (Old::begin(), String::new());
        let mut new = Self { child, channel, protocol, version, step_timeout: MAX_STEP_TIMEOUT };
        new.expect("say that it runs", OldDoes::Offer, READY_TIMEOUT)?;
        let (bytes, reading) = (offer.len() as u64, Clock::start());
        new.tell(
            "read the state",
            &FromOld::Offer { bytes },
            READY_TIMEOUT,
            |channel, deadline| channel.send_bytes(offer, deadline),
        )?;
        new.expect("find whether it could take over", OldDoes::Quiesce, READY_TIMEOUT)?;
        let limit = reading.uptime().saturating_mul(READINGS);
        new.step_timeout = limit.clamp(MIN_STEP_TIMEOUT, MAX_STEP_TIMEOUT);
        Ok(new)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The version that it says it is.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Hands it the state and the descriptors of what nobody serves at the moment, and waits until
    /// it serves it.
    ///
    /// # Errors
    ///
    /// When it does not; it is dead then, and anyone who had the descriptors may serve them again.
    pub fn hand_over(
        &mut self,
        state: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        let (bytes, timeout) = (state.len() as u64, self.step_timeout);
        self.tell("read the state", &FromOld::State { bytes }, timeout, |channel, deadline| {
            channel.send_bytes(state, deadline)
        })?;
        self.expect("read the state", OldDoes::Pass, timeout)?;
        let count = descriptors.len();
        let message = FromOld::Descriptors { count };
        self.tell("take the sockets", &message, timeout, |channel, deadline| {
            channel.send_descriptors(descriptors, deadline)
        })?;
        self.expect("take the sockets", OldDoes::Yield, timeout)?;
        self.tell("serve", &FromOld::Commit, timeout, |_, _| Ok(()))?;
        self.expect("serve", OldDoes::Leave, timeout)
    }

    /// Says something, with what belongs to it.
    fn tell(
        &mut self,
        doing: &'static str,
        message: &FromOld,
        timeout: Duration,
        more: impl FnOnce(&Channel, &IoDeadline) -> Result<(), ChannelError>,
    ) -> Result<(), Failure> {
        let deadline = IoDeadline::after(timeout);
        let sent = self.channel.send(message, &deadline);
        match sent.and_then(|()| more(&self.channel, &deadline)) {
            Ok(()) => Ok(()),
            // It may have said why before it ended.
            Err(ChannelError::Ended) => self.expect(doing, OldDoes::RollBack, timeout),
            Err(error) => Err(self.give_up(doing, error)),
        }
    }

    /// Waits for its next word, which must be the one after which the old process does `wanted`.
    fn expect(
        &mut self,
        doing: &'static str,
        wanted: OldDoes,
        timeout: Duration,
    ) -> Result<(), Failure> {
        match self.channel.receive::<FromNew>(&IoDeadline::after(timeout)) {
            Ok(FromNew::Refused { reasons }) => {
                self.protocol.on(Event::Lost);
                self.kill();
                Err(Failure::Refused(reasons))
            }
            Ok(message) => {
                let does = self.protocol.on(Event::Heard(message.word()));
                if does != wanted || does == OldDoes::RollBack {
                    let said = format!("{message:?}");
                    return Err(self.give_up(doing, ChannelError::Nonsense(said)));
                }
                match message {
                    FromNew::Hello { version, newest_format } => {
                        self.version = version;
                        self.check_format(newest_format)
                    }
                    _ => Ok(()),
                }
            }
            Err(error) => Err(self.give_up(doing, error)),
        }
    }

    /// Whether it can read what this process writes. An older one may not.
    fn check_format(&mut self, newest: u16) -> Result<(), Failure> {
        if newest >= snapshot::VERSION {
            return Ok(());
        }
        self.protocol.on(Event::Lost);
        self.kill();
        Err(Failure::Refused(vec![format!(
            "version {} reads snapshots up to format {newest}, and this one writes format {}",
            self.version,
            snapshot::VERSION
        )]))
    }

    /// Makes sure that it is dead, and says what it did.
    fn give_up(&mut self, doing: &'static str, error: ChannelError) -> Failure {
        let has_ended = matches!(error, ChannelError::Ended);
        self.protocol.on(if has_ended { Event::Ended } else { Event::Lost });
        let status = self.kill();
        if has_ended { Failure::Ended { doing, status } } else { Failure::Lost { doing, error } }
    }

    /// Ends it and waits for that. Where it had ended already, its own status is returned.
    fn kill(&mut self) -> String {
        // They fail only where it has ended already.
        let _ = kill_all(self.child.id());
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

/// Kills the new process of this id, and whatever it has started.
///
/// # Errors
///
/// When there is none.
pub fn kill_all(leader: u32) -> io::Result<()> {
    let group = i32::try_from(leader).map_err(|_| io::ErrorKind::NotFound)?;
    Ok(killpg(Pid::from_raw(group), Signal::SIGKILL)?)
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.protocol != Old::Gone {
            self.kill();
        }
    }
}
