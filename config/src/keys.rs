//! Keys that stand in files of their own, so that anyone who may read the configuration need not know
//! them.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flowgate_core::config::QuicLb;
use flowgate_quic_lb::{Decoder, QuicLbConfig};

use crate::error::{Errors, Fault, Printable, Problem};
use crate::problems::Place;
use crate::{Cluster, Config, hex};

/// A configuration of QUIC-LB as the file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicLbSpec {
    /// Without its key.
    pub config: QuicLbConfig,
    /// Where the key is. None: ids are not encrypted.
    pub key: Option<QuicLbKey>,
}

/// Where a key is.
#[derive(Clone, Debug)]
pub struct QuicLbKey {
    /// The file that holds it.
    pub path: PathBuf,
    /// Where the configuration names the file.
    pub(crate) place: Place,
}

/// It does not count where in the text it stands.
impl PartialEq for QuicLbKey {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for QuicLbKey {}

const ALLOWED: &str = "a file with 32 hexadecimal digits, or 16 bytes, that only its owner and group \
                       can read and only its owner can write";

/// What the ids are read with that need no key, and what is known before files are read.
pub(crate) fn without_keys(specs: &[QuicLbSpec]) -> QuicLb {
    let mut decoder = Decoder::default();
    for spec in specs.iter().filter(|spec| spec.key.is_none()) {
        decoder.insert(spec.config.clone());
    }
    QuicLb(Box::new(decoder))
}

impl Config {
    /// Reads the files that hold keys.
    ///
    /// # Errors
    /// One for each that cannot be read, that others can read, or that holds no key.
    pub(crate) fn read_keys(&mut self) -> Result<(), Errors> {
        let mut problems = Vec::new();
        for cluster in &mut self.clusters {
            let refuse = |key: &QuicLbKey, reason: String| {
                problems.push(problem(key, reason));
            };
            let Some(quic_lb) = with_keys(&cluster.quic_lb, refuse) else { continue };
            let former = Arc::clone(cluster);
            let mut changed = Cluster::clone(&former);
            changed.policy.quic_lb = quic_lb;
            *cluster = Arc::new(changed);
            for listener in &mut self.listeners {
                if Arc::ptr_eq(&listener.cluster, &former) {
                    listener.cluster = Arc::clone(cluster);
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Errors::new(problems)) }
    }
}

/// What ids are read with, if some of it needs a key.
fn with_keys(specs: &[QuicLbSpec], mut refuse: impl FnMut(&QuicLbKey, String)) -> Option<QuicLb> {
    let mut quic_lb = without_keys(specs);
    let mut has_keys = false;
    for spec in specs {
        let Some(key) = &spec.key else { continue };
        match read(&key.path) {
            Ok(bytes) => {
                quic_lb.0.insert(spec.config.clone().with_key(&bytes));
                has_keys = true;
            }
            Err(reason) => refuse(key, reason),
        }
    }
    has_keys.then_some(quic_lb)
}

fn problem(key: &QuicLbKey, reason: String) -> Problem {
    let path = key.path.display().to_string();
    Problem {
        file: Arc::clone(&key.place.file),
        line: key.place.line,
        column: key.place.column,
        key: key.place.key.clone(),
        fault: Fault::Invalid { found: format!("\"{}\", {reason}", Printable(&path)) },
        allowed: Some(ALLOWED.to_owned()),
        suggestion: None,
    }
}

/// The key in a file. What is wrong with it is said without showing it.
fn read(path: &Path) -> Result<[u8; 16], String> {
    const MAX: u64 = 64;
    let unreadable = |error: io::Error| format!("which cannot be read: {error}");
    // What is no file may make its reader wait.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err("which is not a file".to_owned());
    }
    let file = File::open(path).map_err(unreadable)?;
    check_mode(&file.metadata().map_err(unreadable)?)?;
    let mut content = Vec::new();
    file.take(MAX).read_to_end(&mut content).map_err(unreadable)?;
    if let Ok(key) = content[..].try_into() {
        return Ok(key);
    }
    let digits = std::str::from_utf8(&content).ok().and_then(|text| hex::decode(text.trim()));
    let key = digits.and_then(|bytes| bytes.try_into().ok());
    key.ok_or_else(|| "which does not hold a key".to_owned())
}

#[cfg(unix)]
fn check_mode(metadata: &Metadata) -> Result<(), String> {
    use std::fmt::Display;
    use std::os::unix::fs::PermissionsExt;

    const OF_OTHERS_OR_WRITTEN_BY_THE_GROUP: u32 = 0o027;
    let mode = metadata.permissions().mode() & 0o777;
    let is_open = mode & OF_OTHERS_OR_WRITTEN_BY_THE_GROUP != 0;
    let refused =
        |mode: &dyn Display| format!("which others can use (its mode is {mode}; make it 600)");
    if is_open { Err(refused(&format_args!("{mode:o}"))) } else { Ok(()) }
}

#[cfg(not(unix))]
fn check_mode(_: &Metadata) -> Result<(), String> {
    Ok(())
}
