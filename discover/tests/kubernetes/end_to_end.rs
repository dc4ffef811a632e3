//! A pod's end, from the API to the clients: what is said of it comes to a balancer by the file, and no
//! question is lost. The balancer is the one that the workspace's tests have built, or `FLOWGATE`.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::api::{Api, followed};
use crate::support::{Folder, PATIENCE, eventually};

/// A server at an address of its own, with the port of all. It ends when dropped.
struct Pod {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Pod {
    fn start(socket: UdpSocket) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (is_over, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let serve = move || {
            let mut question = [0; 64];
            loop {
                if let Ok((length, from)) = socket.recv_from(&mut question) {
                    let _ = socket.send_to(&question[..length], from);
                    count.fetch_add(1, Ordering::Relaxed);
                } else if is_over.load(Ordering::Relaxed) {
                    // Nothing waits any more: who terminates well answers what it has been asked.
                    return;
                }
            }
        };
        Self { stop, answered, thread: Some(std::thread::spawn(serve)) }
    }

    /// Waits until it is asked more, as it is by flows that it keeps.
    async fn goes_on(&self) {
        let more = self.answered.load(Ordering::Relaxed) + 10;
        let is_more = || self.answered.load(Ordering::Relaxed) > more;
        eventually(is_more, || "more questions to a pod".to_owned()).await;
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Sockets at four addresses that no other test has, all with one port.
fn four_sockets() -> [(String, UdpSocket); 4] {
    let process = std::process::id();
    let ip = |number| {
        Ipv4Addr::new(127, 60, (process / 250 % 250) as u8, (process % 250) as u8 + number)
    };
    loop {
        let first = UdpSocket::bind((ip(0), 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let others = [1, 2, 3].map(|number| UdpSocket::bind((ip(number), port)));
        if let [Ok(b), Ok(c), Ok(d)] = others {
            let mut number = 0;
            return [first, b, c, d].map(|socket| {
                number += 1;
                (ip(number - 1).to_string(), socket)
            });
        }
    }
}

/// A balancer that watches a file, killed when dropped.
struct Balancer {
    child: Child,
    program: PathBuf,
    socket: PathBuf,
}

impl Balancer {
    /// `None`, and a word about it, where none is built.
    fn start(folder: &Path, file: &Path) -> Option<Self> {
        let beside = std::env::current_exe().ok()?;
        let beside = beside.ancestors().nth(2)?.join("flowgate-under-test");
        let named = std::env::var_os("FLOWGATE").map(PathBuf::from);
        let Some(program) = named.or(beside.is_file().then_some(beside)) else {
            eprintln!("skipped: no balancer: `cargo test --workspace --no-run` builds one");
            return None;
        };
        let (config, socket) = (folder.join("flowgate.toml"), folder.join("control.sock"));
        let text = format!(
            "workers = 1\n[admin]\nsocket = {socket:?}\n[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
             [cluster.web]\nbalance = \"round-robin\"\nbackends_from = {{ file = {file:?} }}\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(&program)
            .arg("run")
            .arg(config)
            .env("STATE_DIRECTORY", folder)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, program, socket })
    }

    fn status(&self) -> Option<Value> {
        let mut status = Command::new(&self.program);
        let output =
            status.args(["status", "--json", "--socket"]).arg(&self.socket).output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// The backends as `address weight`, in order.
    fn backends(&self) -> Vec<String> {
        let Some(status) = self.status() else { return Vec::new() };
        let backends = status["clusters"][0]["backends"].as_array().cloned().unwrap_or_default();
        let one = |backend: &Value| {
            let address: SocketAddr = backend["address"].as_str().unwrap().parse().unwrap();
            format!("{} {}", address.ip(), backend["weight"])
        };
        let mut all: Vec<_> = backends.iter().map(one).collect();
        all.sort();
        all
    }

    async fn comes_to_have(&self, expected: &[String]) {
        let mut expected = expected.to_vec();
        expected.sort();
        eventually(
            || self.backends() == expected,
            || format!("{expected:?}, {:?}", self.backends()),
        )
        .await;
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Clients that ask and ask: some on one flow all the time, the others on another one each time.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let new = move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE / 4)).unwrap();
            socket.connect(to).unwrap();
            socket
        };
        let ask = |client: u64| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let mut socket = new();
            if !client.is_multiple_of(2) {
                // One after the other, so that each backend has one of the flows that stay.
                socket.send(b"first").unwrap();
                socket.recv(&mut [0; 64]).unwrap();
            }
            move || {
                let mut number = client << 32;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    if client.is_multiple_of(2) {
                        socket = new();
                    }
                    let lost = |e: std::io::Error| format!("question {number:x} is lost: {e}");
                    socket.send(&number.to_be_bytes()).map_err(lost)?;
                    let mut answer = [0; 64];
                    let length = socket.recv(&mut answer).map_err(lost)?;
                    if answer[..length] != number.to_be_bytes() {
                        return Err(format!("another answer than to question {number:x}"));
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                    // A pace that leaves the machine time for the others.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
        };
        let clients: Vec<_> = (0..6).map(ask).collect();
        let threads = clients.into_iter().map(std::thread::spawn).collect();
        Self { stop, answered, threads }
    }

    async fn goes_on(&self) {
        let more = self.answered.load(Ordering::Relaxed) + 100;
        let is_more = || self.answered.load(Ordering::Relaxed) > more;
        eventually(is_more, || "more answers".to_owned()).await;
    }

    /// Ends it, and returns what was lost.
    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let outcomes = self.threads.into_iter().map(|thread| thread.join().unwrap());
        outcomes.filter_map(Result::err).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_terminates_loses_no_question() {
    let (api, folder) = (Api::new(), Folder::new("k8s-end-to-end"));
    let [(a, of_a), (b, of_b), (c, of_c), (d, of_d)] = four_sockets();
    api.with(|known| known.port = of_a.local_addr().unwrap().port());
    let say = |pods: &[(&String, &str)]| {
        let pods: Vec<_> = pods.iter().map(|(ip, state)| (ip.as_str(), *state)).collect();
        api.put("dns-a", &pods);
    };
    let (_one, two, three) = (Pod::start(of_a), Pod::start(of_b), Pod::start(of_c));
    say(&[(&a, "ready"), (&b, "ready"), (&c, "ready")]);
    let followed = followed(&api, &folder).await;
    let Some(balancer) = Balancer::start(&folder.0, &followed.file) else { return };
    let [up, drains] = [" 1", " 0"].map(|weight| move |ip: &String| ip.clone() + weight);
    balancer.comes_to_have(&[up(&a), up(&b), up(&c)]).await;
    let status = balancer.status().unwrap();
    let load = Load::start(status["listeners"][0]["address"].as_str().unwrap().parse().unwrap());
    load.goes_on().await;

    // Serving and terminating: no new flows, those that there are go on.
    say(&[(&a, "ready"), (&b, "ending"), (&c, "ready")]);
    balancer.comes_to_have(&[up(&a), drains(&b), up(&c)]).await;
    two.goes_on().await;
    load.goes_on().await;
    // It says that it serves no more, and goes a moment later.
    say(&[(&a, "ready"), (&b, "ended"), (&c, "ready")]);
    balancer.comes_to_have(&[up(&a), up(&c)]).await;
    load.goes_on().await;
    drop(two);
    load.goes_on().await;
    // Its successor comes, and the API is away while all goes on.
    let four = Pod::start(of_d);
    say(&[(&a, "ready"), (&c, "ready"), (&d, "ready")]);
    balancer.comes_to_have(&[up(&a), up(&c), up(&d)]).await;
    api.is_away.send_replace(true);
    load.goes_on().await;
    api.is_away.send_replace(false);
    say(&[(&a, "ready"), (&c, "ending"), (&d, "ready")]);
    balancer.comes_to_have(&[up(&a), drains(&c), up(&d)]).await;
    three.goes_on().await;
    say(&[(&a, "ready"), (&d, "ready")]);
    balancer.comes_to_have(&[up(&a), up(&d)]).await;
    load.goes_on().await;
    drop(three);
    load.goes_on().await;
    assert_eq!(load.finish(), [""; 0]);
    assert!(four.answered.load(Ordering::Relaxed) > 0, "the successor was never asked");
}
