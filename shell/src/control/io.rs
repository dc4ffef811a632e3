//! How datagrams come and go: by all that Linux has for it, or by what every system has.

use std::collections::BTreeSet;
use std::fmt;

use flowgate_config::{Announce, AnnounceBy, Cluster, Config, FastPathMode, Listener, Workers};
use flowgate_core::config::{Accept, Affinity, Source, UpstreamMode};

/// The environment variable that chooses.
pub const VARIABLE: &str = "FLOWGATE_IO";

/// Whether this system has calls of its own that are used.
const HAS_OWN: bool = cfg!(target_os = "linux");

const EXPECTED: &str = if HAS_OWN {
    "\"linux\" or \"portable\", or nothing"
} else {
    "\"portable\" or nothing: this system has no other"
};

/// Where something cannot be had.
const WHERE: &str = if HAS_OWN { "with FLOWGATE_IO=portable" } else { "on this system" };

/// By which calls of the system datagrams come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Those of Linux.
    Linux,
    /// Those that every system has in some form.
    Portable,
}

/// It cannot be as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// There is nothing of this name.
    #[error("{VARIABLE} is {0:?}: expected {EXPECTED}")]
    Unknown(String),
    /// It cannot do what a configuration asks for.
    #[error("{WHERE} this cannot be had:\n{}", .0.join("\n"))]
    Lacks(Vec<String>),
}

impl Io {
    /// What the environment of this process says.
    ///
    /// # Errors
    ///
    /// When it says nothing that is known.
    pub fn of_this_process() -> Result<Self, IoError> {
        Self::named(&std::env::var_os(VARIABLE).unwrap_or_default().to_string_lossy())
    }

    fn named(name: &str) -> Result<Self, IoError> {
        match name {
            "" | "linux" if HAS_OWN => Ok(Self::Linux),
            "" | "portable" => Ok(Self::Portable),
            other => Err(IoError::Unknown(other.to_owned())),
        }
    }

    /// Its name, as the variable has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Portable => "portable",
        }
    }

    /// Why the kernel cannot forward flows past the sockets, if it cannot for that.
    pub const fn fast_path_obstacle(self) -> Option<&'static str> {
        match self {
            Self::Linux => None,
            Self::Portable if HAS_OWN => {
                Some("FLOWGATE_IO is \"portable\", which knows no kernel path")
            }
            Self::Portable => Some("this system has no kernel path"),
        }
    }

    /// Whether sockets can be passed on to another process, with what is known of them.
    pub const fn can_hand_over(self) -> bool {
        matches!(self, Self::Linux)
    }
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether all that a configuration asks for can be had.
///
/// # Errors
///
/// With everything that cannot.
pub fn check(config: &Config, io: Io) -> Result<(), IoError> {
    if io == Io::Linux {
        return Ok(());
    }
    let mut lacks = lacks_of_system(config);
    let mut serving = BTreeSet::new();
    for listener in &config.listeners {
        lacks.extend(lacks_of_listener(listener));
        serving.insert(listener.cluster.name.as_str());
        serving.extend(listener.cluster.mirror.as_deref());
    }
    let serving = serving.into_iter().filter_map(|name| config.cluster(name));
    lacks.extend(serving.filter_map(|cluster| lack_of_cluster(cluster)));
    if lacks.is_empty() { Ok(()) } else { Err(IoError::Lacks(lacks)) }
}

/// What is to be known of what a configuration asks for: it works, and is less than on Linux.
pub fn remarks(config: &Config, io: Io) -> Vec<String> {
    if io == Io::Linux {
        return Vec::new();
    }
    let mut remarks = vec![format!(
        "{WHERE} datagrams are passed on without their DSCP (the ECN bits pass) and their time to live: \
         a loop over other hosts ends by what balancers know of addresses"
    )];
    for cluster in config.used_clusters().filter(|cluster| hears_no_refusal(cluster)) {
        let name = &cluster.name;
        remarks.push(format!(
            "cluster {name:?}: {WHERE} nothing tells that a backend refuses datagrams of shared sockets: \
             set health.probe"
        ));
    }
    remarks
}

/// Whether what a cluster's backends say by ICMP would count, and does not arrive.
fn hears_no_refusal(cluster: &Cluster) -> bool {
    let policy = &cluster.policy;
    let shares = policy.upstream == UpstreamMode::Shared;
    shares && policy.health.passive.is_some() && cluster.health.is_none()
}

/// How many workers a server has where nobody says it: as many as may share listeners.
pub fn max_workers() -> usize {
    if HAS_OWN { usize::MAX } else { 1 }
}

/// What Linux has by whichever calls, and this system has not.
fn lacks_of_system(config: &Config) -> Vec<String> {
    let mut lacks = Vec::new();
    if HAS_OWN {
        return lacks;
    }
    if let Workers::Count(count) = config.workers
        && count.get() > 1
    {
        lacks.push("workers: clients cannot be spread over several; set it to 1".to_owned());
    }
    for listener in config.listeners.iter().filter(|listener| listener.interface.is_some()) {
        let name = &listener.name;
        lacks.push(format!(
            "listener {name:?}: interface: no socket hears one interface alone; remove it"
        ));
    }
    // Of QUIC it is no more than a hint, which nobody has written.
    let whole = |l: &&Listener| l.dont_fragment && l.cluster.policy.affinity != Affinity::Quic;
    for listener in config.listeners.iter().filter(whole) {
        let name = &listener.name;
        lacks.push(format!(
            "listener {name:?}: dont_fragment: it cannot be asked for; set it to false"
        ));
    }
    let by_bird = |announce: &Announce| matches!(announce.by, AnnounceBy::Bird { .. });
    if cfg!(windows) && config.announced().any(|(_, announce)| by_bird(announce)) {
        lacks.push("announce: there is no bird on Windows; use a command".to_owned());
    }
    lacks
}

fn lacks_of_listener(listener: &Listener) -> Vec<String> {
    let name = &listener.name;
    let mut lacks = Vec::new();
    if listener.accept != Accept::Shared {
        lacks.push(format!(
            "listener {name:?}: accept: clients cannot have sockets of their own; set it to \"shared\""
        ));
    }
    if listener.fast_path == FastPathMode::Tc {
        lacks.push(format!(
            "listener {name:?}: fast_path = \"tc\": there is no kernel path; set it to \"off\" or \"auto\""
        ));
    }
    lacks
}

fn lack_of_cluster(cluster: &Cluster) -> Option<String> {
    let name = &cluster.name;
    if cluster.is_direct {
        return Some(format!(
            "cluster {name:?}: return = \"direct\": nothing can be sent from clients' addresses"
        ));
    }
    (cluster.policy.source == Source::Client).then(|| {
        format!(
            "cluster {name:?}: source = \"client\": nothing can be sent from clients' addresses"
        )
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_can_be_chosen() {
        for (name, io) in [("", Io::Linux), ("linux", Io::Linux), ("portable", Io::Portable)] {
            assert_eq!(Io::named(name), Ok(io));
        }
        assert_eq!(Io::named("Portable"), Err(IoError::Unknown("Portable".to_owned())));
    }

    #[test]
    fn everything_that_cannot_be_had_is_told_at_once() {
        let text = "[[listener]]\naddress = \"192.0.2.53:53\"\ncluster = \"a\"\naccept = \"connected\"\n\
                    fast_path = \"tc\"\n\
                    [cluster.a]\nbackends = [\"192.0.2.1:53\"]\nsource = \"client\"\n\
                    [cluster.unused]\nbackends = [\"192.0.2.1:53\"]\nsource = \"client\"\n";
        let config = flowgate_config::parse(text, "test.toml").unwrap();
        assert_eq!(check(&config, Io::Linux), Ok(()));
        let told = check(&config, Io::Portable).unwrap_err().to_string();
        for part in ["accept", "fast_path", "cluster \"a\": source"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(!told.contains("unused"), "{told}");
    }

    #[test]
    fn what_is_less_than_on_linux_is_remarked() {
        let plain = "[[listener]]\naddress = \"192.0.2.53:53\"\ncluster = \"a\"\n\
                     [cluster.a]\nbackends = [\"192.0.2.1:53\"]\n";
        let remarks =
            |text: &str, io| remarks(&flowgate_config::parse(text, "test.toml").unwrap(), io);
        assert_eq!(remarks(plain, Io::Linux), [""; 0]);
        let of_all = remarks(plain, Io::Portable);
        assert!(of_all.len() == 1 && of_all[0].contains("DSCP"), "{of_all:?}");
        let shared = format!("{plain}upstream = \"shared\"\n");
        let told = remarks(&shared, Io::Portable);
        assert!(told.len() == 2 && told[1].contains("\"a\""), "{told:?}");
        let probed = format!("{shared}[cluster.a.health]\nprobe = \"tcp\"\n");
        assert_eq!(remarks(&probed, Io::Portable), of_all);
    }
}
