//! The new process's side: the process that it takes over from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use flowgate_core::snapshot;

use super::channel::{Channel, ChannelError, FromNew, FromOld};
use super::protocol::{Event, New, NewDoes};
use crate::sys::clock::IoDeadline;
use crate::sys::process;

/// How long the old process may take for a step. It may be asked other things meanwhile, and its own
/// timeouts are shorter.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

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
    #[error("the old flowgate handed nothing over: {0}")]
    Lost(ChannelError),
    /// It has closed the channel, and lives.
    #[error("the flowgate to take over from (process {0}) has ended the handover, and still runs")]
    StillThere(u32),
}

/// How many bytes of reasons are told: as many as fit into a packet, whatever they are made of.
const MAX_REASONS: usize = 8 << 10;

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
    /// Its process id, where it is known.
    process: Option<u32>,
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
        // The parent may be a program between the two; who has made the channel is the old one.
        let over = |channel: Channel| Self { process: channel.maker(), ..Self::over(channel) };
        of_stdin().map(over).map_err(GiveUp::NoChannel)
    }

    /// The process at the other end of a channel.
    pub const fn over(channel: Channel) -> Self {
        Self { channel, protocol: New::begin(), process: None }
    }

    /// Says that what was asked last is done, at first that this process runs, and waits for what
    /// comes next.
    ///
    /// # Errors
    ///
    /// When the old process says nothing, or what makes no sense: then it lives, and this one is to
    /// end.
    pub fn proceed(&mut self) -> Result<Step, GiveUp> {
        let deadline = IoDeadline::after(STEP_TIMEOUT);
        let mut descriptors = Vec::new();
        let heard = self.say_done(&deadline).and_then(|()| self.hear(&mut descriptors, &deadline));
        let (does, bytes) = match heard {
            Ok((message, bytes)) => (self.protocol.on(Event::Heard(message.word())), bytes),
            Err(ChannelError::Ended) => {
                self.wait_for_the_end()?;
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
    /// the channel closes while it is about to end. One that goes on serves, and nobody else may.
    fn wait_for_the_end(&mut self) -> Result<(), GiveUp> {
        let Some(process) = self.process else { return Ok(()) };
        let deadline = IoDeadline::after(TIME_TO_END);
        while !process::has_ended(process) {
            if deadline.left().is_err() {
                self.protocol.on(Event::Lost);
                return Err(GiveUp::StillThere(process));
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Says that this process serves. Nothing is waited for: an old process that has died cannot
    /// hear it, and one that timed out has killed this one.
    pub fn serving(self) {
        let _ = self.say_done(&IoDeadline::after(STEP_TIMEOUT));
    }

    /// Says why this process cannot take over.
    pub fn refuse(self, reasons: Vec<String>) {
        let reasons = shortened(reasons);
        // An old process that cannot be told finds that this one has ended.
        let _ = self.channel.send(&FromNew::Refused { reasons }, &IoDeadline::after(STEP_TIMEOUT));
    }

    fn say_done(&self, deadline: &IoDeadline) -> Result<(), ChannelError> {
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
        deadline: &IoDeadline,
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

/// As much of some reasons as may be told, and how many more there are.
fn shortened(reasons: Vec<String>) -> Vec<String> {
    let (mut told, mut left, count) = (Vec::new(), MAX_REASONS, reasons.len());
    for mut reason in reasons {
        let mut end = left.min(reason.len());
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let is_cut = end < reason.len();
        reason.truncate(end);
        left -= end;
        told.push(reason);
        if is_cut {
            break;
        }
    }
    if told.len() < count {
        told.push(format!("and {} more reasons", count - told.len()));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_serves_beside_an_old_process_that_lives() {
        let (old, new) = Channel::pair().unwrap();
        let mut predecessor =
            Predecessor { process: Some(std::process::id()), ..Predecessor::over(new) };
        drop(old);
        let step = predecessor.proceed();
        assert!(matches!(step, Err(GiveUp::StillThere(_))), "{step:?}");
    }

    #[test]
    fn long_reasons_are_shortened_and_the_first_are_told() {
        let short = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(shortened(short.clone()), short);
        let many: Vec<String> = (0..100_000).map(|number| format!("\u{1f980} {number}")).collect();
        let told = shortened(many.clone());
        assert_eq!(told[..10], many[..10]);
        assert!(told.last().is_some_and(|last| last.ends_with("more reasons")));
        assert!(told.iter().map(String::len).sum::<usize>() < MAX_REASONS + 100);
        assert_eq!(shortened(vec!["\u{1f980}".repeat(100_000)])[0].len(), MAX_REASONS);
    }
}
