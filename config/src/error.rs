//! What is wrong with a configuration, and how it is told.

use std::fmt::{self, Display, Write};
use std::sync::Arc;

/// One thing wrong, or, among [`Config::warnings`](crate::Config::warnings), one thing odd.
///
/// Displayed as one line, with what the user wrote escaped where a terminal could act on it:
/// `flowgate.toml:12:11: cluster.dns.balance: found "rendezvou"; allowed: …; did you mean "rendezvous"?`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the file, as given to [`parse`](crate::parse).
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// The path of the key, such as `listener[0].address`. Empty where the text is not TOML.
    pub key: String,
    /// What is wrong there.
    pub fault: Fault,
    /// What may stand there instead.
    pub allowed: Option<String>,
    /// What was probably meant, when the text looks like a typo.
    pub suggestion: Option<String>,
}

/// What is wrong at a place. What was `found` is an excerpt of the file, escaped and cut to length.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The text is not TOML, for this reason.
    Syntax(String),
    /// No such key belongs here.
    UnknownKey,
    /// A key that must be there is not.
    Missing,
    /// The value is not one of those allowed.
    Invalid {
        /// The value.
        found: String,
    },
    /// A string names a variable that the environment does not have.
    NoVariable {
        /// The variable.
        name: String,
    },
    /// Another file says the same key.
    Again {
        /// Where.
        first: String,
    },
    /// A warning: a cluster that serves no listener.
    Unused,
    /// A warning: a cluster without backends, which drops all that it is sent.
    NoBackends,
    /// A warning: a key that changes nothing beside the others.
    NoEffect {
        /// What makes it so.
        because: &'static str,
    },
    /// A warning: everybody's PROXY headers are believed.
    TrustsEverybody,
    /// A warning: an address of the administration that other hosts may reach.
    OpenToOthers,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", Printable(&self.file), self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.fault)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {allowed}")?;
        }
        match &self.suggestion {
            Some(key) if self.fault == Fault::UnknownKey => write!(f, "; did you mean `{key}`?"),
            Some(value) => write!(f, "; did you mean {value:?}?"),
            None => Ok(()),
        }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(reason) => write!(f, "not TOML: {reason}"),
            Self::UnknownKey => f.write_str("unknown key"),
            Self::Missing => f.write_str("missing"),
            Self::Invalid { found } => write!(f, "found {found}"),
            Self::NoVariable { name } => {
                write!(f, "found ${{{name}}}, which is not set in the environment")
            }
            Self::Again { first } => write!(f, "{first} has it already"),
            Self::Unused => f.write_str("no listener uses this cluster"),
            Self::NoBackends => {
                f.write_str("no backends: every datagram to this cluster is dropped")
            }
            Self::NoEffect { because } => write!(f, "has no effect, as {because}"),
            Self::TrustsEverybody => {
                f.write_str("any host can claim any client address, and datagrams without a PROXY header are dropped")
            }
            Self::OpenToOthers => {
                f.write_str("other hosts may reach this address, and no password is asked for")
            }
        }
    }
}

/// Every problem of a configuration, at least one, in the order of its texts.
///
/// Displayed as one line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(Vec<Problem>);

impl Errors {
    pub(crate) fn new(problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "a configuration is refused without a reason");
        Self(problems)
    }

    /// The problems in the order of the text.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Errors {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Why there is no configuration in a file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file cannot be read as text.
    #[error("cannot read {}: {source}", Printable(.file))]
    Unreadable {
        /// The file's name.
        file: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The directory holds no configuration.
    #[error("{}: no file in it is called *.toml; name a file, or a directory with some", Printable(.directory))]
    NoFiles {
        /// The directory's name.
        directory: String,
    },
    /// The text is not a valid configuration.
    #[error(transparent)]
    Invalid(#[from] Errors),
}

/// Shows text of the user's with the characters escaped that would do more than be seen.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '"' | '\'' | '\\' => f.write_char(char)?,
                _ => write!(f, "{}", char.escape_debug())?,
            }
        }
        Ok(())
    }
}
