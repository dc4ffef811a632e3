//! Backends that are found: files that change under the balancer, in all the ways that they do, HTTP
//! servers and SRV records; and what stands while they are away.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use flowgate::control::discovery::{Discoverer, DiscoverySources};
use flowgate_config::{BackendsFrom, Place};
use flowgate_tests::e2e::{PATIENCE, Peer, eventually};
use flowgate_tests::echo_server::EchoServer;
use flowgate_tests::process::Process;
use flowgate_tests::resolver::dnsmasq;
use flowgate_tests::scratch::Scratch;
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// A directory, and what tests write into it.
trait Folder {
    fn at(&self, name: &str) -> String;

    /// Writes a file as those do who know that it is read.
    fn replace(&self, name: &str, text: &str);
}

impl Folder for Scratch {
    fn at(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    fn replace(&self, name: &str, text: &str) {
        std::fs::write(self.at(".draft"), text).unwrap();
        std::fs::rename(self.at(".draft"), self.at(name)).unwrap();
    }
}

fn set(backends: &[SocketAddr]) -> String {
    let targets: Vec<_> = backends.iter().map(ToString::to_string).collect();
    serde_json::json!([{ "targets": targets }]).to_string()
}

fn toml(from: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
         [cluster.web]\nbackends_from = {from}\n"
    )
}

/// The backends that a process has, with their weights.
fn backends(process: &Process) -> Vec<(String, u64)> {
    let status = process.ask_json(&["status"]);
    let backends = status["clusters"][0]["backends"].as_array().unwrap().iter();
    let one = |b: &serde_json::Value| {
        (b["address"].as_str().unwrap().to_owned(), b["weight"].as_u64().unwrap())
    };
    backends.map(one).collect()
}

#[track_caller]
fn comes_to_have(process: &Process, expected: &[SocketAddr]) {
    let expected: Vec<_> = expected.iter().map(|address| (address.to_string(), 1)).collect();
    eventually("the backends that are expected", || (backends(process) == expected).then_some(()));
}

/// Waits until a cluster has this backend and no other.
#[track_caller]
fn has_one(process: &Process, cluster: usize, backend: SocketAddr) {
    eventually("the backend that is expected", || {
        let status = process.ask_json(&["status"]);
        let backends = status["clusters"][cluster]["backends"].as_array()?;
        let [one] = &backends[..] else { return None };
        (one["address"] == backend.to_string()).then_some(())
    });
}

/// A process that keeps what it finds in the folder, and where it listens.
fn start(folder: &Scratch, toml: &str) -> (Process, SocketAddr) {
    let state = folder.at("state");
    std::fs::create_dir_all(&state).unwrap();
    let mut process = Process::run_with(FLOWGATE, toml, &[("STATE_DIRECTORY", &state)]);
    let address = process.address();
    (process, address)
}

fn echo() -> EchoServer {
    EchoServer::start("127.0.0.1:0", |_| true)
}

fn is_answered(address: SocketAddr) {
    let client = Peer::v4();
    client.send_to(b"ping", address);
    assert_eq!(client.receive().bytes, b"ping");
}

#[test]
fn a_file_is_followed_and_only_good_sets_are_taken() {
    let folder = Scratch::new("file");
    let (a, b) = (echo(), echo());
    let file = folder.at("web.json");
    let (mut process, address) = start(&folder, &toml(&format!("{{ file = {file:?} }}")));
    assert_eq!(backends(&process), []);

    folder.replace("web.json", &set(&[a.address()]));
    comes_to_have(&process, &[a.address()]);
    is_answered(address);
    folder.replace("web.json", &set(&[a.address(), b.address()]));
    comes_to_have(&process, &[a.address(), b.address()]);

    // Half of one, none at all, one without anybody: what was good stays.
    let whole = set(&[a.address()]);
    for bad in [&whole[..whole.len() / 2], "", "[]", "{\"targets\": []}"] {
        std::fs::write(&file, bad).unwrap();
        process.line("keeping the last good one");
        assert_eq!(backends(&process).len(), 2, "{bad}");
        folder.replace("web.json", &set(&[a.address(), b.address()]));
        process.line("is good again");
    }
    std::fs::remove_file(&file).unwrap();
    process.line("keeping the last good one");
    assert_eq!(backends(&process).len(), 2);

    let draining = serde_json::json!([
        { "targets": [a.address().to_string()], "labels": { "drain": "true" } },
        { "targets": [b.address().to_string()], "labels": { "weight": "3" } },
    ]);
    folder.replace("web.json", &draining.to_string());
    let expected = [(a.address().to_string(), 0), (b.address().to_string(), 3)];
    eventually("one drains", || (backends(&process) == expected).then_some(()));
}

#[test]
fn a_set_that_cannot_be_in_force_keeps_no_other_cluster_waiting() {
    let folder = Scratch::new("refused");
    let (a, b) = (echo(), echo());
    folder.replace("web.json", &set(&[a.address()]));
    folder.replace("api.json", &set(&[a.address()]));
    let from = |name: &str| format!("{{ file = {:?} }}", folder.at(name));
    let second = "[[listener]]\nname = \"api\"\naddress = \"127.0.0.1:0\"\ncluster = \"api\"\n";
    let more = format!("{second}[cluster.api]\nbackends_from = {}\n", from("api.json"));
    let (mut process, _) = start(&folder, &(toml(&from("web.json")) + &more));
    has_one(&process, 0, a.address());
    has_one(&process, 1, a.address());

    // The loopback interface has this broadcast address in every namespace.
    folder.replace("web.json", &set(&["127.255.255.255:53".parse().unwrap()]));
    process.line("cannot go over to the backends that were found");
    folder.replace("api.json", &set(&[b.address()]));
    has_one(&process, 1, b.address());
    has_one(&process, 0, a.address());
    // A reload does not fail for it, and says so.
    let reloaded = process.ask(&["reload"]);
    let said =
        String::from_utf8_lossy(&reloaded.stdout) + String::from_utf8_lossy(&reloaded.stderr);
    assert!(reloaded.status.success(), "{said}");
    assert!(said.contains("cannot go over to the backends that were found"), "{said}");
    has_one(&process, 0, a.address());
    folder.replace("web.json", &set(&[b.address()]));
    has_one(&process, 0, b.address());
}

#[test]
fn a_link_on_the_way_to_a_file_may_be_swapped() {
    // As Kubernetes does for the maps that it mounts.
    let folder = Scratch::new("link");
    let (a, b) = (echo(), echo());
    for (name, backend) in [("..1", &a), ("..2", &b)] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("web.json"), set(&[backend.address()]))
            .unwrap();
    }
    symlink("..1", folder.path().join("..data")).unwrap();
    symlink("..data/web.json", folder.path().join("web.json")).unwrap();
    let file = folder.at("web.json");
    let (process, _) = start(&folder, &toml(&format!("{{ file = {file:?} }}")));
    comes_to_have(&process, &[a.address()]);
    symlink("..2", folder.path().join("..tmp")).unwrap();
    std::fs::rename(folder.path().join("..tmp"), folder.path().join("..data")).unwrap();
    comes_to_have(&process, &[b.address()]);
}

#[test]
fn a_start_without_the_source_serves_what_was_good_last() {
    let folder = Scratch::new("kept");
    let a = echo();
    let config = toml(&format!("{{ file = {:?} }}", folder.at("web.json")));
    folder.replace("web.json", &set(&[a.address()]));
    let (mut first, _) = start(&folder, &config);
    comes_to_have(&first, &[a.address()]);
    first.signal(Signal::SIGINT);
    first.wait();

    std::fs::remove_file(folder.at("web.json")).unwrap();
    let (second, address) = start(&folder, &config);
    is_answered(address);
    assert_eq!(backends(&second), [(a.address().to_string(), 1)]);
}

#[test]
fn a_reload_and_an_upgrade_keep_what_was_found() {
    let folder = Scratch::new("reload");
    let (a, b) = (echo(), echo());
    folder.replace("web.json", &set(&[b.address()]));
    let file = folder.at("web.json");
    let (mut process, address) = start(&folder, &toml(&format!("{{ file = {file:?} }}")));
    comes_to_have(&process, &[b.address()]);
    // What is listed comes first.
    let with_list =
        |list: &str| format!("{}backends = [{list:?}]\n", toml(&format!("{{ file = {file:?} }}")));
    process.reload(&with_list(&a.address().to_string()));
    comes_to_have(&process, &[a.address(), b.address()]);
    process.upgrade(&[]);
    is_answered(address);
    assert_eq!(backends(&process).len(), 2);
    folder.replace("web.json", &set(&[]));
    process.line("keeping the last good one");
    assert_eq!(backends(&process).len(), 2);
    folder.replace("web.json", &set(&[a.address()]));
    comes_to_have(&process, &[a.address()]);
}

/// A server of sets; it counts what it is asked.
struct Http {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    asked: mpsc::Receiver<String>,
}

impl Http {
    fn start(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(answer.to_owned()));
        let (sender, asked) = mpsc::channel();
        let says = Arc::clone(&answer);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    request.push(byte[0]);
                }
                let answer = says.lock().unwrap().clone();
                let _ = stream.write_all(answer.as_bytes());
                if sender.send(String::from_utf8_lossy(&request).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { address, answer, asked }
    }

    fn says(&self, answer: &str) {
        *self.answer.lock().unwrap() = answer.to_owned();
    }
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncache-control: max-age=1\r\netag: \"{}\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
        body.len()
    )
}

#[test]
fn a_server_is_asked_again_as_its_answer_says() {
    let folder = Scratch::new("http");
    let (a, b) = (echo(), echo());
    let server = Http::start(&ok(&set(&[a.address()])));
    let url = format!("http://{}/backends", server.address);
    let (mut process, _) =
        start(&folder, &toml(&format!("{{ http = {url:?}, interval = \"1h\" }}")));
    comes_to_have(&process, &[a.address()]);

    server.says("HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n");
    let with_tag = eventually("a question with a tag", || {
        let asked = server.asked.recv_timeout(PATIENCE).ok()?.to_ascii_lowercase();
        asked.contains("if-none-match:").then_some(asked)
    });
    assert!(with_tag.starts_with("get /backends http/1.1"), "{with_tag}");
    assert_eq!(backends(&process).len(), 1);

    server.says("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    process.line("keeping the last good one");
    assert_eq!(backends(&process), [(a.address().to_string(), 1)]);
    // A set of nobody is of no use, and it is not asked whether that has changed.
    server.says(&ok("[]"));
    eventually("a question without a tag", || {
        let asked = server.asked.recv_timeout(PATIENCE).ok()?.to_ascii_lowercase();
        (!asked.contains("if-none-match:")).then_some(())
    });
    assert_eq!(backends(&process), [(a.address().to_string(), 1)]);
    server.says(&ok(&set(&[a.address(), b.address()])));
    comes_to_have(&process, &[a.address(), b.address()]);
}

#[test]
fn srv_records_say_port_weight_and_who_stands_by() {
    let records = ["_dns._udp.test,a.test,5301,10,7", "_dns._udp.test,b.test,5302,20,1"];
    let Some(server) = dnsmasq(records.iter().map(|record| format!("--srv-host={record}"))) else {
        return;
    };
    let place = Place::Srv("_dns._udp.test".to_owned());
    let sources =
        DiscoverySources::from([("dns".to_owned(), BackendsFrom { place, allow_empty: false })]);
    let (sender, found) = mpsc::channel();
    let on_found = move |discovered| drop(sender.send(discovered));
    let timeout = Duration::from_secs(2);
    let discoverer = Discoverer::start_with(&[server.address()], timeout, None, on_found).unwrap();
    discoverer.set_sources(sources);
    // It may be asked before it listens, and is asked again then.
    let discovered = found.recv_timeout(PATIENCE).unwrap();
    let members: Vec<_> = discovered
        .members
        .iter()
        .map(|member| (member.target.to_string(), member.weight, member.backup))
        .collect();
    let expected = [("a.test.:5301".to_owned(), 7, false), ("b.test.:5302".to_owned(), 1, true)];
    assert_eq!(members, expected);
}
