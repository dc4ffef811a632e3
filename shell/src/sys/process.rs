//! What the process asks of the system for itself.

use std::io;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

/// What a process uses of the system, beside files.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUsage {
    /// The time that processors have worked for it.
    pub cpu_seconds: f64,
    /// The memory that it has.
    pub resident_bytes: u64,
    /// The addresses that it has.
    pub virtual_bytes: u64,
    /// Its threads.
    pub threads: u64,
}

/// A random number from the operating system (`getrandom(2)`).
///
/// # Errors
///
/// Those of `getrandom(2)`.
pub fn random_seed() -> io::Result<u64> {
    Ok(getrandom::u64()?)
}
