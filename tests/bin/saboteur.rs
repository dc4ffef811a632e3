//! A program that is to take over from a running Flowgate and plays false, as `SABOTAGE` says:
//! `DEED@WORD`.
//!
//! Instead of saying a word of the new process it exits, hangs, talks nonsense or refuses. Or it
//! stands between the old process and a real new one (`SABOTAGE_PROGRAM`), and when that word comes,
//! of whichever side, kills the old one, or damages the snapshot that follows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use flowgate::handover::channel::Channel;
use flowgate::handover::predecessor::Predecessor;
use flowgate::sys::scm;
use flowgate_tests::process::runs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

/// What the new process says, in its order.
const WORDS: [&str; 5] = ["hello", "ready", "read", "holding", "serving"];

fn main() {
    let old = getppid();
    eprintln!("saboteur: process {}", std::process::id());
    let plan = std::env::var("SABOTAGE").expect("SABOTAGE=DEED@WORD");
    let (deed, word) = plan.split_once('@').expect("SABOTAGE=DEED@WORD");
    let stdin = io::stdin().as_fd().try_clone_to_owned().expect("a channel");
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null").expect("it is there")).expect("room");
    match deed {
        "kill" | "damage" | "renumber" => stand_between(&stdin, old, deed, word),
        _ => play_along(stdin, deed, word),
    }
}

/// Does what a new process does up to a word, and then something else.
fn play_along(stdin: OwnedFd, deed: &str, word: &str) {
    let raw = stdin.try_clone().expect("a descriptor");
    let channel = Channel::from_descriptor(stdin).expect("a channel");
    let mut predecessor = Predecessor::over(channel);
    let steps = WORDS.iter().position(|known| *known == word).expect("a word");
    for _ in 0..steps {
        predecessor.proceed().expect("the old process goes on");
    }
    match deed {
        "exit" => {}
        "hang" => hang(),
        "garbage" => {
            scm::send(raw.as_fd(), b"\x00\xffno", &[]).expect("the old process listens");
            hang();
        }
        "lie" => {
            let out_of_turn: &[u8] = b"{\"word\":\"serving\"}";
            scm::send(raw.as_fd(), out_of_turn, &[]).expect("the old process listens");
            hang();
        }
        "refuse" => predecessor.refuse(vec!["not today".into()]),
        _ => panic!("no such deed: {deed}"),
    }
}

fn hang() {
    // Until it is killed.
    let _ = poll(&mut [], PollTimeout::NONE);
}

/// Passes on what the two processes say until the word comes.
fn stand_between(old_end: &OwnedFd, old: Pid, deed: &str, word: &str) {
    let (_new, new_end) = real_successor();
    let (old_end, new_end) = (old_end.as_fd(), new_end.as_fd());
    let said = format!("\"word\":\"{word}\"");
    let mut is_next = false;
    loop {
        let (from, to) = readable(old_end, new_end);
        let mut buffer = vec![0; 1 << 17];
        let Ok((length @ 1.., descriptors)) = scm::receive(from, &mut buffer) else { return };
        let mut packet = buffer[..length].to_vec();
        let is_word = String::from_utf8_lossy(&packet).contains(&said);
        if is_word && deed == "kill" {
            kill(old, Signal::SIGKILL).expect("it runs");
            while runs(old) {
                std::thread::yield_now();
            }
            return;
        }
        if std::mem::replace(&mut is_next, is_word) {
            match deed {
                "damage" => packet[length / 2] ^= 0x10,
                // The format's number comes behind eight bytes that say what it is.
                _ => packet[8] += 1,
            }
        }
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if scm::send(to, &packet, &descriptors).is_err() {
            return;
        }
    }
}

/// The end that has something to say, and the other.
fn readable<'a>(old: BorrowedFd<'a>, new: BorrowedFd<'a>) -> (BorrowedFd<'a>, BorrowedFd<'a>) {
    let mut both = [PollFd::new(old, PollFlags::POLLIN), PollFd::new(new, PollFlags::POLLIN)];
    poll(&mut both, PollTimeout::NONE).expect("a poll");
    if both[0].any().unwrap_or(true) { (old, new) } else { (new, old) }
}

fn real_successor() -> (Child, OwnedFd) {
    let program = std::env::var("SABOTAGE_PROGRAM").expect("a program");
    let (ours, theirs) = Channel::pair().expect("a channel");
    let mut command = Command::new(program);
    command.args(std::env::args().skip(1)).stdin(Stdio::from(theirs.into_descriptor()));
    let child = command.spawn().expect("a child process");
    (child, ours.into_descriptor())
}
