//! How others are told whether to send traffic here, to this instance or to one of its listeners.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// When this instance, or one of its listeners, is announced, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// How many backends have to be up of each cluster that serves a listener, or this one.
    pub min_backends_up: u32,
    /// After how many looks in a row that find it fit it is announced. At least 1.
    pub rise: u32,
    /// After how many that find it unfit it is withdrawn. At least 1.
    pub fall: u32,
    /// The time from one look to the next.
    pub interval: Duration,
    /// Who is told.
    pub by: AnnounceBy,
}

/// Who is told what is announced and withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AnnounceBy {
    /// A program, with `announce` or `withdraw` as its last argument.
    Command(Vec<String>),
    /// Bird: a protocol is enabled or disabled.
    Bird {
        /// Its control socket.
        socket: PathBuf,
        /// The protocol, or a pattern with `*` that several match.
        protocol: String,
    },
    /// ExaBGP, of which this process is one of the API processes: it reads standard output.
    ExaBgp {
        /// What is announced: at least one.
        routes: Vec<IpNet>,
        /// An address, or `self`.
        next_hop: String,
    },
}
