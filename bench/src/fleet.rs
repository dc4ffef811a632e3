//! What a fleet asks of one balancer: ten thousand backends of which one changes, and a thousand ports in one range.
//!
//! While the backends change, clients send numbered datagrams at an even pace; what comes to the backends is counted, so
//! that none can be lost unseen, and the longest time in which nothing came says how long the data path was held up. On a
//! machine with few cores the load takes its time from the balancer, which is part of what is measured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Args;

use crate::Result;
use crate::process::{self, Cores, Guarded, Scratch};

/// How long anything may take before it counts as never.
const TIMEOUT: Duration = Duration::from_secs(60);

/// From one datagram of the load to the next.
const PACE: Duration = Duration::from_micros(200);

/// What Flowgate logs when it has gone over to a set of backends.
const IN_FORCE: &str = "the backends that were found are in force";

/// How many clients the load has.
const CLIENTS: usize = 64;

/// Where the listener is, and the backends, each at an address of its own of 127.0.0.0/8.
const LISTENER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 17_000);
const BACKENDS: u16 = 17_999;

/// The ports of the range.
const FIRST_PORT: u16 = 20_000;

/// The options of `flowgate-bench fleet`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many backends there are.
    #[arg(long, default_value_t = 10_000)]
    backends: u32,
    /// How many ports the range has.
    #[arg(long, default_value_t = 1_000)]
    ports: u16,
    /// How often each thing is measured; the medians count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The Flowgate to measure (default: beside this executable).
    #[arg(long, value_name = "PATH")]
    flowgate: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let flowgate = process::flowgate(options.flowgate.as_deref())?;
    for balance in ["rendezvous", "maglev"] {
        backends_change(options, &flowgate, balance)?;
    }
    a_range(options, &flowgate)
}

/// A balancer with many backends: how long it takes to start, and to go over to others.
fn backends_change(options: &Options, flowgate: &Path, balance: &str) -> Result<()> {
    let scratch = Scratch::new("fleet")?;
    let (config, found) = (scratch.path("flowgate.toml"), scratch.path("backends.json"));
    let socket = scratch.path("control.sock");
    let write_config = |last: u32, is_listed: bool| {
        let from = format!("backends_from = {{ file = {found:?} }}");
        let listed = format!("backends = [{}]", list(options.backends, last));
        let backends = if is_listed { listed } else { from };
        let text = format!(
            "[admin]\nsocket = {socket:?}\n[[listener]]\nname = \"fleet\"\naddress = \"{}\"\n\
             cluster = \"web\"\n[cluster.web]\nbalance = {balance:?}\n{backends}\n\
             [cluster.web.health]\npassive = false\n",
            SocketAddr::from(LISTENER)
        );
        fs::write(&config, text)
    };
    let write_found = |last: u32| {
        let draft = scratch.path(".draft");
        fs::write(&draft, format!("[{{\"targets\": [{}]}}]", list(options.backends, last)))?;
        let begun = Instant::now();
        fs::rename(draft, &found).map(|()| begun)
    };
    write_found(0)?;
    write_config(0, false)?;
    let mut changes = Vec::new();
    let mut reloads = Vec::new();
    let begun = Instant::now();
    let command = [flowgate.display().to_string(), "run".into(), config.display().to_string()];
    let process = Guarded::start(Cores::available()?.balancer, &command, Scratch::new("run")?)?;
    let started =
        until(begun, || ask(&socket, "GET /live").is_ok_and(|answer| answer.contains(" 200 ")));
    let Some(started) = started else { return Err(process.output().into()) };
    let load = Load::start()?;
    for round in 0..options.rounds as u32 {
        thread::sleep(Duration::from_millis(300));
        load.take_gap();
        let begun = write_found(round + 1)?;
        // Nothing is asked meanwhile: a status of this many backends takes time of the same thread.
        let in_force = || process.output().matches(IN_FORCE).count() > round as usize;
        let took = until(begun, in_force);
        changes.push((took.ok_or("the file is not read")?, load.take_gap()));
    }
    let last = address(options.backends + options.rounds as u32).to_string();
    if !ask(&socket, "GET /status")?.contains(&last) {
        return Err("the last change is not in force, though it is said to be".into());
    }
    // The same from the configuration itself.
    write_config(0, true)?;
    ask(&socket, "POST /reload")?;
    for round in 0..options.rounds as u32 {
        thread::sleep(Duration::from_millis(300));
        write_config(round + 1, true)?;
        load.take_gap();
        let begun = Instant::now();
        let answer = ask(&socket, "POST /reload")?;
        reloads.push((begun.elapsed(), load.take_gap()));
        if !answer.contains(" 200 ") {
            return Err(answer.into());
        }
    }
    let (sent, lost) = load.finish()?;
    println!("{} backends, {balance}, {sent} datagrams, {lost} lost", options.backends);
    println!("  start                          {}", in_ms(started));
    say("one changes in their file", changes);
    say("one changes in flowgate.toml", reloads);
    Ok(())
}

fn say(what: &str, mut all: Vec<(Duration, Duration)>) {
    all.sort_unstable();
    let longest = all.iter().map(|(_, gap)| *gap).max().unwrap_or_default();
    let (median, _) = all[all.len() / 2];
    println!("  {what:30} {}   longest time without a datagram {}", in_ms(median), in_ms(longest));
}

/// A balancer with a range of ports: how long it takes to start, and whether flows are kept.
fn a_range(options: &Options, flowgate: &Path) -> Result<()> {
    let scratch = Scratch::new("range")?;
    let (config, socket) = (scratch.path("flowgate.toml"), scratch.path("control.sock"));
    let backend = UdpSocket::bind("127.0.0.1:0")?;
    backend.set_read_timeout(Some(Duration::from_secs(5)))?;
    let last = FIRST_PORT + options.ports - 1;
    let write_config = |max_flows: u32| {
        let text = format!(
            "drain_timeout = \"0s\"\n[admin]\nsocket = {socket:?}\n[[listener]]\nname = \"media\"\n\
             address = \"127.0.0.1:{FIRST_PORT}-{last}\"\nmax_flows = {max_flows}\ncluster = \"web\"\n\
             [cluster.web]\nbackends = [\"{}\"]\n[cluster.web.health]\npassive = false\n",
            backend.local_addr()?
        );
        fs::write(&config, text)
    };
    write_config(8_000)?;
    let command = [flowgate.display().to_string(), "run".into(), config.display().to_string()];
    let mut starts = Vec::new();
    let mut running = None;
    for _ in 0..options.rounds {
        drop(running.take());
        let begun = Instant::now();
        let process = Guarded::start(Cores::available()?.balancer, &command, Scratch::new("run")?)?;
        let is_live = || ask(&socket, "GET /live").is_ok_and(|answer| answer.contains(" 200 "));
        let Some(took) = until(begun, is_live) else { return Err(process.output().into()) };
        starts.push(took);
        running = Some(process);
    }
    starts.sort_unstable();

    // One client for each port. A flow that is kept has the source port that it had.
    let clients: Vec<UdpSocket> =
        (FIRST_PORT..=last).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    let ask_all = || -> Result<Vec<SocketAddr>> {
        let mut from = Vec::new();
        for (client, port) in clients.iter().zip(FIRST_PORT..) {
            client.send_to(&port.to_be_bytes(), (Ipv4Addr::LOCALHOST, port))?;
            let mut datagram = [0; 8];
            let (length, sender) = backend.recv_from(&mut datagram)?;
            if datagram[..length] != port.to_be_bytes() {
                return Err(format!("another datagram than that to port {port}").into());
            }
            from.push(sender);
        }
        Ok(from)
    };
    let before = ask_all()?;
    write_config(9_000)?;
    let begun = Instant::now();
    ask(&socket, "POST /reload")?;
    let reload = begun.elapsed();
    let after_reload = ask_all()?;
    let begun = Instant::now();
    let answer = ask(&socket, "POST /upgrade")?;
    let upgrade = begun.elapsed();
    if !answer.contains(" 200 ") {
        return Err(answer.into());
    }
    let after_upgrade = ask_all()?;
    let status = ask(&socket, "GET /status")?;
    let (_, status) = status.split_once("\r\n\r\n").ok_or("no status")?;
    let status: serde_json::Value = serde_json::from_str(status)?;
    let listeners = status["listeners"].as_array().map_or(0, Vec::len);
    let kept = |after: &[SocketAddr]| before.iter().zip(after).filter(|(a, b)| a == b).count();
    println!(
        "{} ports in one range, a flow at each; listeners in status: {listeners}",
        options.ports
    );
    println!("  start                          {}", in_ms(starts[starts.len() / 2]));
    println!(
        "  reload                         {}   flows kept: {}",
        in_ms(reload),
        kept(&after_reload)
    );
    println!(
        "  upgrade                        {}   flows kept: {}",
        in_ms(upgrade),
        kept(&after_upgrade)
    );
    // The process that took over is no child, and ends when it is told to: at once, so that the ports are free again.
    let _ = ask(&socket, "POST /stop");
    Ok(())
}

/// So many backends, of which the first is another one each time.
fn list(backends: u32, first: u32) -> String {
    let first = if first == 0 { 0 } else { backends + first };
    let all = std::iter::once(first)
        .chain(1..backends)
        .map(|number| format!("{:?}", address(number).to_string()));
    all.collect::<Vec<_>>().join(", ")
}

fn address(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    (Ipv4Addr::new(127, 10 + a, b, c), BACKENDS).into()
}

/// Asks the control socket, and returns all that it says.
fn ask(socket: &Path, what: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let request = format!(
        "{what} HTTP/1.1\r\nhost: flowgate\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// How long after `begun` something is so; `None` where it never is.
fn until(begun: Instant, is_so: impl Fn() -> bool) -> Option<Duration> {
    while !is_so() {
        if begun.elapsed() > TIMEOUT {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Some(begun.elapsed())
}

fn in_ms(time: Duration) -> String {
    format!("{:8.1} ms", time.as_secs_f64() * 1e3)
}

/// Clients that send at an even pace, and backends that count.
struct Load {
    stop: Arc<AtomicBool>,
    /// The longest time in which nothing came, in microseconds, since it was taken last.
    gap: Arc<AtomicU64>,
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<io::Result<u64>>,
}

impl Load {
    fn start() -> Result<Self> {
        // All addresses of 127.0.0.0/8 are this host's: one socket is all backends.
        let backends = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, BACKENDS))?;
        backends.set_read_timeout(Some(Duration::from_millis(500)))?;
        let (stop, gap) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let is_over = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let clients: Vec<UdpSocket> =
                (0..CLIENTS).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
            let mut sent = 0_u64;
            let mut next = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                clients[sent as usize % CLIENTS].send_to(&sent.to_be_bytes(), LISTENER)?;
                sent += 1;
                next += PACE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(sent)
        });
        let (is_over, longest) = (Arc::clone(&stop), Arc::clone(&gap));
        let receiver = thread::spawn(move || {
            let (mut received, mut last) = (0, Instant::now());
            loop {
                match backends.recv(&mut [0; 16]) {
                    Ok(_) => {
                        received += 1;
                        let now = Instant::now();
                        longest.fetch_max((now - last).as_micros() as u64, Ordering::Relaxed);
                        last = now;
                    }
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    // Nothing more comes.
                    Err(_) if is_over.load(Ordering::Relaxed) => return Ok(received),
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, gap, sender, receiver })
    }

    fn take_gap(&self) -> Duration {
        Duration::from_micros(self.gap.swap(0, Ordering::Relaxed))
    }

    /// Ends it, and returns how many datagrams were sent, and how many of them are lost.
    fn finish(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let over =
            |thread: JoinHandle<io::Result<u64>>| thread.join().map_err(|_| "a thread panicked");
        let sent = over(self.sender)??;
        let received = over(self.receiver)??;
        Ok((sent, sent.saturating_sub(received)))
    }
}
