//! Starts a program with descriptors that come over standard input, as a service manager does
//! (`sd_listen_fds(3)`): `flowgate-activator COUNT PROGRAM ARGUMENTS...`, with their names in
//! `LISTEN_FDNAMES`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use flowgate::sys::scm;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The number of the first descriptor.
const FIRST: i32 = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).expect("a count");
    let program = arguments.next().expect("a program");

    // Whatever else was left open to this process.
    for other in FIRST..1_024 {
        let _ = nix::unistd::close(other);
    }
    // The lowest numbers that are free, one after the other: those from 3 on.
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    while descriptors.len() < count {
        let (_, some) = scm::receive(io::stdin().as_fd(), &mut [0; 64]).expect("descriptors");
        descriptors.extend(some);
    }
    for (descriptor, number) in descriptors.iter().zip(FIRST..) {
        assert_eq!(descriptor.as_raw_fd(), number);
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).expect("an open descriptor");
    }
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null").expect("it is there")).expect("room");
    let mut command = Command::new(program);
    command.args(arguments);
    if count > 0 {
        let process = std::process::id().to_string();
        command.env("LISTEN_PID", process).env("LISTEN_FDS", count.to_string());
    } else {
        command.env_remove("LISTEN_FDNAMES");
    }
    panic!("{}", command.exec());
}
