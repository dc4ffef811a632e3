//! The new process's side: the process that it takes over from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use flowgate_core::snapshot;
use nix::unistd::getppid;

use super::channel::{Channel, ChannelError, FromNew, FromOld};
use super::protocol::{Event, New, NewDoes};
use crate::sys::clock::Deadline;
use crate::sys::process;

/// How long the old process may take for a step. It may be asked other things meanwhile, and has
/// less patience with us than we with it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an old process whose channel is closed may take to end.
const TIME_TO_END: Duration = Duration::from_secs(2);

/// How long to wait before asking whether it has.
const STEP: Duration = Duration::from_millis(1);

/// Why this process does not take over.
#[derive(Debug, thiserror::Error)]
pub enum GiveUp {
    /// There is nobody to take over from.
    #[error("--take-over is for a flowgate that another one starts, for an upgrade: {0}")]
    NoChannel(io::Error),
    /// The old process does not go through with it.
    #[error("the flowgate to take over from gave nothing over: {0}")]
    Lost(ChannelError),
}

/// What comes from the old process next.
#[derive(Debug)]
pub enum Step {
    /// How things stand. To be looked at: could this process take over?
    Validate(Vec<u8>),
    /// How things stood when it quiesced its flows.
    Read(Vec<u8>),
    /// All descriptors, in the order that the state says.
    Stage(Vec<OwnedFd>),
    /// It is this process that serves from now on.
    ///
    /// Where the old one has died, this may come before anything else has, and these are the
    /// descriptors that came without the others.
    Serve(Vec<OwnedFd>),
}

/// The process to take over from.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    protocol: New,
    /// Its process id, where it is the parent of this process.
    parent: Option<u32>,
}

impl Predecessor {
    /// The process that started this one, with the channel for its standard input.
    ///
    /// # Errors
    ///
    /// When that is no such channel.
    pub fn of_this_process() -> Result<Self, GiveUp> {
        let of_stdin = || {
            let descriptor = io::stdin().as_fd().try_clone_to_owned()?;
            let channel = Channel::from_descriptor(descriptor)?;
            // So that the old process sees it closed as soon as this one closes it.
            nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
            Ok(channel)
        };
        let parent = u32::try_from(getppid().as_raw()).ok();
        let over = |channel| Self { parent, ..Self::over(channel) };
        of_stdin().map(over).map_err(GiveUp::NoChannel)
    }

    /// The process at the other end of a channel.
    pub const fn over(channel: Channel) -> Self {
        Self { channel, protocol: New::begin(), parent: None }
    }

    /// Says that what was asked last is done, at first that this process runs, and waits for what
    /// comes next.
    ///
    /// # Errors
    ///
    /// When the old process says nothing, or what makes no sense: then it lives, and this one is to
    /// end.
    pub fn proceed(&mut self) -> Result<Step, GiveUp> {
        let deadline = Deadline::after(PATIENCE);
        let mut descriptors = Vec::new();
        let heard = self.say_done(&deadline).and_then(|()| self.hear(&mut descriptors, &deadline));
        let (does, bytes) = match heard {
            Ok((message, bytes)) => (self.protocol.on(Event::Heard(message.word())), bytes),
            Err(ChannelError::Ended) => {
                self.wait_for_the_end();
                (self.protocol.on(Event::Ended), Vec::new())
            }
            Err(error) => {
                self.protocol.on(Event::Lost);
                return Err(GiveUp::Lost(error));
            }
        };
        Ok(match does {
            NewDoes::Validate => Step::Validate(bytes),
            NewDoes::Read => Step::Read(bytes),
            NewDoes::Stage => Step::Stage(descriptors),
            NewDoes::Serve => Step::Serve(descriptors),
            NewDoes::GiveUp => {
                let out_of_turn = ChannelError::Nonsense("this is not its turn".into());
                return Err(GiveUp::Lost(out_of_turn));
            }
        })
    }

    /// Waits until the old process is gone with all of its sockets, whose addresses may be needed:
    /// the channel closes while it is about to end.
    fn wait_for_the_end(&self) {
        let deadline = Deadline::after(TIME_TO_END);
        let has_ended = || self.parent.is_none_or(process::has_ended);
        while !has_ended() && deadline.left().is_ok() {
            std::thread::sleep(STEP);
        }
    }

    /// Says that this process serves. Nothing is waited for: an old process that has died cannot
    /// hear it, and one that has lost its patience has killed this one.
    pub fn serving(self) {
        let _ = self.say_done(&Deadline::after(PATIENCE));
    }

    /// Says why this process cannot take over.
    pub fn refuse(self, reasons: Vec<String>) {
        // An old process that cannot be told finds that this one has ended.
        let _ = self.channel.send(&FromNew::Refused { reasons }, &Deadline::after(PATIENCE));
    }

    fn say_done(&self, deadline: &Deadline) -> Result<(), ChannelError> {
        let message = match self.protocol {
            New::Greeting => FromNew::Hello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                newest_format: snapshot::VERSION,
            },
            New::Validating => FromNew::Ready,
            New::Reading => FromNew::Read,
            New::Staged => FromNew::Staged,
            New::Serving => FromNew::Serving,
            New::Over => return Ok(()),
        };
        debug_assert_eq!(Some(message.word()), self.protocol.word());
        self.channel.send(&message, deadline)
    }

    /// The next message, with what belongs to it.
    fn hear(
        &self,
        descriptors: &mut Vec<OwnedFd>,
        deadline: &Deadline,
    ) -> Result<(FromOld, Vec<u8>), ChannelError> {
        let message = self.channel.receive(deadline)?;
        let bytes = match message {
            FromOld::Offer { bytes } | FromOld::State { bytes } => {
                self.channel.receive_bytes(bytes, deadline)?
            }
            FromOld::Descriptors { count } => {
                self.channel.receive_descriptors(count, descriptors, deadline)?;
                Vec::new()
            }
            FromOld::Commit => Vec::new(),
        };
        Ok((message, bytes))
    }
}
