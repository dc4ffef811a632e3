//! Who is in charge: the two sides of a hand-over as state machines, without sockets or processes.
//!
//! The old process asks [`Old`] what to do after each word of the new one, and the new process
//! asks [`New`]. What they say keeps one promise, which the tests check for every order of events
//! and every moment at which either side may die: never are two processes in charge, and while one
//! is alive, in the end one is.

/// What the new process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NewWord {
    /// It runs, and has read its configuration.
    Hello,
    /// It has read the state, and could take over.
    Ready,
    /// It has read how things stood when the old process quiesced its flows.
    Read,
    /// It has every descriptor in its place.
    Staged,
    /// It serves.
    Serving,
    /// It cannot or will not, and ends.
    Refused,
}

/// What the old process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OldWord {
    /// This is how things stand.
    Offer,
    /// This is how things stood when it quiesced its flows.
    State,
    /// These are the descriptors, all of them.
    Descriptors,
    /// Commit: they belong to the new process.
    Commit,
}

/// What one side learns of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event<W> {
    /// It said something.
    Heard(W),
    /// It has ended: every word of it has been heard, and the channel is closed. All threads of a
    /// process are gone before its descriptors close.
    Ended,
    /// It says nothing for too long, or something without sense.
    Lost,
}

/// What the old process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OldDoes {
    /// Say how things stand, and go on serving.
    Offer,
    /// Let go of the flows, and say how things stand.
    Quiesce,
    /// Pass all descriptors.
    Pass,
    /// Say that they belong to the new process. It may serve from now on.
    Yield,
    /// End: the new process serves.
    Leave,
    /// Make sure that the new process is dead, and serve, as if nothing had been.
    RollBack,
}

/// The old process, by what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Old {
    /// The new process to say that it runs.
    Starting,
    /// It to find that it could take over.
    Offering,
    /// It to read the state.
    Quiescing,
    /// It to put the descriptors into their places.
    Passing,
    /// It to serve.
    Committing,
    /// Nothing: the new process serves.
    Gone,
    /// Nothing: there is no new process.
    Alone,
}

impl Old {
    /// The new process has been started.
    pub const fn begin() -> Self {
        Self::Starting
    }

    /// Takes in what is learned of the new process and says what to do.
    pub const fn on(&mut self, event: Event<NewWord>) -> OldDoes {
        let (next, does) = match (&*self, event) {
            (Self::Starting, Event::Heard(NewWord::Hello)) => (Self::Offering, OldDoes::Offer),
            (Self::Offering, Event::Heard(NewWord::Ready)) => (Self::Quiescing, OldDoes::Quiesce),
            (Self::Quiescing, Event::Heard(NewWord::Read)) => (Self::Passing, OldDoes::Pass),
            (Self::Passing, Event::Heard(NewWord::Staged)) => (Self::Committing, OldDoes::Yield),
            (Self::Committing, Event::Heard(NewWord::Serving)) => (Self::Gone, OldDoes::Leave),
            (Self::Gone, _) => (Self::Gone, OldDoes::Leave),
            _ => (Self::Alone, OldDoes::RollBack),
        };
        *self = next;
        does
    }

    /// Whether it serves.
    pub const fn serves(&self) -> bool {
        matches!(self, Self::Starting | Self::Offering | Self::Alone)
    }

    /// Whether the flows are its own: nobody else may serve them.
    pub const fn owns(&self) -> bool {
        !matches!(self, Self::Committing | Self::Gone)
    }
}

/// What the new process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NewDoes {
    /// Read how things stand, and find out whether it could take over.
    Validate,
    /// Read how things stood at last.
    Read,
    /// Put the descriptors into their places.
    Stage,
    /// Serve, with whatever it has.
    Serve,
    /// End.
    GiveUp,
}

/// The new process, by what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum New {
    /// The old process to say how things stand.
    Greeting,
    /// It to quiesce its flows.
    Validating,
    /// The descriptors.
    Reading,
    /// It to leave them to us.
    Staged,
    /// Nothing: it serves.
    Serving,
    /// Nothing: it ends.
    Over,
}

impl New {
    /// It has said hello.
    pub const fn begin() -> Self {
        Self::Greeting
    }

    /// Takes in what is learned of the old process and says what to do.
    ///
    /// An old process that has ended serves nobody any more: then someone must.
    pub const fn on(&mut self, event: Event<OldWord>) -> NewDoes {
        let (next, does) = match (&*self, event) {
            (Self::Over, _) => (Self::Over, NewDoes::GiveUp),
            (Self::Serving, _) | (_, Event::Ended) => (Self::Serving, NewDoes::Serve),
            (Self::Greeting, Event::Heard(OldWord::Offer)) => (Self::Validating, NewDoes::Validate),
            (Self::Validating, Event::Heard(OldWord::State)) => (Self::Reading, NewDoes::Read),
            (Self::Reading, Event::Heard(OldWord::Descriptors)) => (Self::Staged, NewDoes::Stage),
            (Self::Staged, Event::Heard(OldWord::Commit)) => (Self::Serving, NewDoes::Serve),
            _ => (Self::Over, NewDoes::GiveUp),
        };
        *self = next;
        does
    }

    /// What it is to say once it has done what it was told to.
    pub const fn word(&self) -> Option<NewWord> {
        match self {
            Self::Greeting => Some(NewWord::Hello),
            Self::Validating => Some(NewWord::Ready),
            Self::Reading => Some(NewWord::Read),
            Self::Staged => Some(NewWord::Staged),
            Self::Serving => Some(NewWord::Serving),
            Self::Over => None,
        }
    }

    /// Whether it serves.
    pub const fn serves(&self) -> bool {
        matches!(self, Self::Serving)
    }
}

impl OldDoes {
    /// What the old process says while it does it.
    pub const fn word(self) -> Option<OldWord> {
        match self {
            Self::Offer => Some(OldWord::Offer),
            Self::Quiesce => Some(OldWord::State),
            Self::Pass => Some(OldWord::Descriptors),
            Self::Yield => Some(OldWord::Commit),
            Self::Leave | Self::RollBack => None,
        }
    }
}

#[cfg(test)]
mod tests;
