//! `flowgate top` on a terminal that the test plays.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use flowgate_tests::e2e::eventually;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::FLOWGATE;
use crate::served::{CLUSTER, CLUSTER_SHOWN, LISTENER, LISTENER_SHOWN, Served};

#[test]
fn top_without_a_terminal_returns_1_and_says_so() {
    let served = Served::start();
    let (code, _, complaints) = served.command(&["top"]);
    assert_eq!(code, Some(1));
    assert!(complaints.contains("draws on a terminal"), "{complaints}");
}

/// `flowgate top` on a terminal of 80 columns and 24 rows.
struct Top {
    child: Child,
    keyboard: std::fs::File,
    screen: Arc<Mutex<String>>,
}

impl Top {
    fn start(served: &Served) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("a terminal");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut command = Command::new(FLOWGATE);
        command.args(["top", "--socket", served.path()]).env("TERM", "xterm");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("a child");
        let keyboard = std::fs::File::from(master);
        let mut eyes = keyboard.try_clone().expect("a descriptor");
        let screen = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // The end of a terminal is an error.
            while let Ok(length @ 1..) = eyes.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..length]).into_owned();
                seen.lock().expect("no panic").push_str(&text);
            }
        });
        Self { child, keyboard, screen }
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        eventually(text, || self.seen().contains(text).then_some(()));
    }

    fn seen(&self) -> String {
        self.screen.lock().expect("no panic").clone()
    }

    /// It ends well and leaves the terminal as it was.
    #[track_caller]
    fn assert_ends_well(&mut self) {
        let status = eventually("top ends", || self.child.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(0));
        const OTHER_SCREEN: [&str; 2] = ["\x1b[?1049h", "\x1b[?1049l"];
        assert!(self.seen().contains(OTHER_SCREEN[0]));
        self.wait_for(OTHER_SCREEN[1]);
        self.wait_for("\x1b[?25h");
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_shows_escaped_names_until_a_key_or_a_signal_ends_it() -> io::Result<()> {
    type End = fn(&mut Top) -> io::Result<()>;
    let ends: [End; 3] = [
        |top| top.keyboard.write_all(b"q"),
        |top| top.keyboard.write_all(b"\x03"),
        |top| Ok(kill(Pid::from_raw(top.child.id() as i32), Signal::SIGTERM)?),
    ];
    let served = Served::start();
    for end in ends {
        let mut top = Top::start(&served);
        for shown in ["Flowgate", LISTENER_SHOWN, CLUSTER_SHOWN] {
            top.wait_for(shown);
        }
        assert!(!top.seen().contains(LISTENER) && !top.seen().contains(CLUSTER));
        end(&mut top)?;
        top.assert_ends_well();
    }
    Ok(())
}
