//! The `flowgate` command as a child process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::e2e::{PATIENCE, eventually};
use crate::scratch::unused_path;

/// A configuration in a file of its own, deleted when dropped.
pub struct ConfigFile(PathBuf);

impl ConfigFile {
    /// Writes `toml` into a new file.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn new(toml: &str) -> Self {
        let path = unused_path("test.toml");
        std::fs::write(&path, toml).expect("a temporary file");
        Self(path)
    }

    /// Says something else from now on. Anyone who reads it meanwhile gets the one or the other.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn rewrite(&self, toml: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, toml).expect("a temporary file");
        std::fs::rename(&new, &self.0).expect("a temporary file");
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.0.to_str().expect("a plain path")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The control socket of a process with this configuration file.
fn control_socket(config: &ConfigFile) -> String {
    format!("{}.sock", config.path())
}

/// A configuration with a control socket of its own, unless it says something about that itself.
fn with_control_socket(config: &ConfigFile, toml: &str) -> String {
    if toml.contains("[admin]") {
        return toml.to_owned();
    }
    format!("{toml}\n[admin]\nsocket = {:?}\n", control_socket(config))
}

/// A running `flowgate run`, killed when dropped.
pub struct Process {
    child: Child,
    /// The process that has taken over from the child.
    heir: Option<Pid>,
    log: Receiver<String>,
    heard: Vec<String>,
    binary: String,
    /// Its configuration.
    pub config: ConfigFile,
}

impl Process {
    /// Runs `binary run` with a configuration.
    ///
    /// # Panics
    ///
    /// When it cannot be run.
    pub fn run(binary: &str, toml: &str) -> Self {
        Self::spawn(Command::new(binary), binary, toml)
    }

    /// The same with a limit on its open files, the hard one too.
    pub fn run_with_descriptors(binary: &str, toml: &str, limit: u32) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$@\""), "sh", binary]);
        Self::spawn(shell, binary, toml)
    }

    /// The same with variables in its environment.
    pub fn run_with(binary: &str, toml: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary);
        command.envs(environment.iter().copied());
        Self::spawn(command, binary, toml)
    }

    /// The same with a directory that is its configuration, of which this is one file, after all whose
    /// names begin with lower digits.
    pub fn run_directory(
        binary: &str,
        directory: &Path,
        toml: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(binary);
        command.envs(environment.iter().copied()).arg("run").arg(directory);
        Self::spawn_with(command, binary, ConfigFile(directory.join("90-own.toml")), toml)
    }

    fn spawn(mut command: Command, binary: &str, toml: &str) -> Self {
        let config = ConfigFile::new("");
        command.args(["run", config.path()]);
        Self::spawn_with(command, binary, config, toml)
    }

    fn spawn_with(mut command: Command, binary: &str, config: ConfigFile, toml: &str) -> Self {
        config.rewrite(&with_control_socket(&config, toml));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a child process");
        let (lines, log) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || {
            // Ends with the child, or with the test.
            stderr.lines().map_while(Result::ok).all(|line| lines.send(line).is_ok())
        });
        Self { child, heir: None, log, heard: Vec::new(), binary: binary.to_owned(), config }
    }

    /// Changes its configuration file.
    pub fn rewrite_config(&self, toml: &str) {
        self.config.rewrite(&with_control_socket(&self.config, toml));
    }

    /// Where it can be asked.
    pub fn control_socket(&self) -> String {
        control_socket(&self.config)
    }

    /// Runs a command that asks it something, such as `status --json`.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        output(&self.binary, &[arguments, &["--socket", &self.control_socket()]].concat())
    }

    /// The same where the answer is a document.
    ///
    /// # Panics
    ///
    /// When it is refused.
    #[track_caller]
    pub fn ask_json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.ask(&[arguments, &["--json"]].concat());
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaints}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Has it read its configuration again.
    ///
    /// # Panics
    ///
    /// When it refuses.
    #[track_caller]
    pub fn reload(&self, toml: &str) {
        self.rewrite_config(toml);
        let output = self.ask(&["reload"]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}\n{toml}");
    }

    /// Has it hand over to a new process, of the same program unless `arguments` say otherwise, and
    /// follows that one. Returns what is said of it.
    ///
    /// # Panics
    ///
    /// When it refuses.
    #[track_caller]
    pub fn upgrade(&mut self, arguments: &[&str]) -> String {
        let output = self.ask(&[&["upgrade"], arguments].concat());
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        self.follow();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Follows the process that serves the control socket now. Any other has ended, or does soon.
    ///
    /// # Panics
    ///
    /// When there is none.
    #[track_caller]
    pub fn follow(&mut self) {
        let former = self.pid();
        let heir = eventually("someone answers", || {
            let output = self.ask(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            Some(Pid::from_raw(status["pid"].as_i64()? as i32))
        });
        if heir != former {
            eventually("the old process ends", || (!runs(former)).then_some(()));
        }
        self.heir = Some(heir);
        // So that it is no zombie.
        let _ = self.child.try_wait();
    }

    /// The next line of its log that contains `text`.
    #[track_caller]
    pub fn line(&mut self, text: &str) -> String {
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.heard.push(line),
                Err(_) => panic!("no line with {text:?} after {:#?}", self.heard),
            }
        }
    }

    /// The address of its listener, once it runs.
    #[track_caller]
    pub fn address(&mut self) -> SocketAddr {
        let line = self.line("listening");
        let word = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
        let address = word.expect("an address").parse().expect("an address");
        self.line("started");
        address
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process ends", || self.child.try_wait().expect("a child"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// How many sockets it has open.
    pub fn sockets(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// How many bytes of memory it has.
    pub fn resident_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.expect("a number of kibibytes") << 10
    }

    /// Its threads: name, and how often each was put on a processor so far.
    pub fn threads(&self) -> Vec<(String, u64)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let describe = |task: std::fs::DirEntry| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            // Time on the processor, time waiting for it, and how often.
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            Some((name.trim().to_owned(), stat.split_whitespace().nth(2)?.parse().ok()?))
        };
        tasks.filter_map(|task| describe(task.ok()?)).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.heir.unwrap_or(Pid::from_raw(self.child.id() as i32))
    }
}

/// Whether a process runs: one that has ended and that nobody has waited for does not.
pub fn runs(process: Pid) -> bool {
    !flowgate::sys::process::has_ended(process.as_raw() as u32)
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(heir) = self.heir {
            let _ = kill(heir, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
///
/// # Panics
///
/// When it cannot be run.
pub fn output(binary: &str, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).stdin(Stdio::null()).output().expect("a child process")
}
