//! Descriptors that the service manager opened for this process (`sd_listen_fds(3)`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the descriptors over with their names, in the order of the service manager: they are 3 and
/// following. They are not passed on to child processes. Only the first call returns any.
///
/// # Errors
///
/// When the variables that announce them are damaged, or a descriptor that they announce is not
/// open.
pub fn descriptors() -> io::Result<Vec<(String, OwnedFd)>> {
    static ARE_TAKEN: AtomicBool = AtomicBool::new(false);
    if ARE_TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // The variables say for which process they are, so that a child takes nothing for its own.
    let numbers = sd_notify::listen_fds_with_names()?;
    // SAFETY: they have been found to be open. They were before this process began, so that
    // nothing in it has opened them, and they are taken once.
    Ok(numbers.map(|(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) })).collect())
}
