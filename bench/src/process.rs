//! The processes under test: started on their own core, stopped in any case.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, hint, process};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Result;

/// The file in a scratch directory that holds what the process prints.
const OUTPUT: &str = "output";

/// The two cores of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Clients and backends.
    pub(crate) load: usize,
    /// The balancer.
    pub(crate) balancer: usize,
}

impl Cores {
    /// The first two cores that this process may use; they are the same core if there is only one.
    pub(crate) fn available() -> nix::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).filter(|&core| allowed.is_set(core) == Ok(true));
        let load = cores.next().unwrap_or(0);
        Ok(Cores { load, balancer: cores.next().unwrap_or(load) })
    }
}

/// The Flowgate to measure: the one that is named, or the one beside this executable; or why there is none.
pub(crate) fn flowgate(named: Option<&Path>) -> std::result::Result<PathBuf, String> {
    let beside = || Ok(env::current_exe()?.with_file_name("flowgate"));
    let program = named.map_or_else(beside, |named| Ok(named.to_owned()));
    let program = program.map_err(|error: io::Error| error.to_string())?;
    if program.is_file() {
        return Ok(program);
    }
    Err(format!(
        "{} does not exist; build it with `cargo build --release -p flowgate`, or name it with --flowgate",
        program.display()
    ))
}

/// Keeps the calling thread, and what it starts, on one core.
pub(crate) fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Becomes `command` on `core`: this is the `launch` subcommand, by which [`Guarded::start`] starts everything.
///
/// A process of its own can prepare itself before `exec` without any unsafe code between `fork` and `exec`.
pub(crate) fn launch(core: usize, command: &[String]) -> Result<()> {
    pin(core)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // Should the benchmark be killed, this goes too. SIGTERM lets nginx take its worker along.
    set_pdeathsig(Signal::SIGTERM)?;
    let (program, arguments) = command.split_first().ok_or("nothing to launch")?;
    Err(Command::new(program).args(arguments).exec().into())
}

/// Does nothing, all the time: this is the `spin` subcommand.
pub(crate) fn spin() -> ! {
    loop {
        hint::spin_loop();
    }
}

/// A running process, with what it started; it ends with this value.
pub(crate) struct Guarded {
    child: Child,
    scratch: Scratch,
}

impl Guarded {
    /// Starts `command` on `core`, in a process group of its own; what it prints goes to `scratch`, and so does what it
    /// would otherwise put into `/run`.
    pub(crate) fn start(core: usize, command: &[String], scratch: Scratch) -> io::Result<Self> {
        let output = File::create(scratch.path(OUTPUT))?;
        let child = Command::new(env::current_exe()?)
            .args(["launch", "--core", &core.to_string(), "--"])
            .args(command)
            .env("RUNTIME_DIRECTORY", &scratch.0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        Ok(Guarded { child, scratch })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the process has printed so far.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.scratch.path(OUTPUT)).unwrap_or_default()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The group has gone already if the process ended by itself; there is nothing more to do then.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A directory for the files of one process under test; it goes with this value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let path = env::temp_dir().join(format!("flowgate-bench-{}-{name}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
