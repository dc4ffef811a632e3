//! SIP by sipp (Debian: sip-tester), with a socket for each call, and with one for all: whichever socket
//! a call's messages come from, they go to the server that its Call-ID says.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use flowgate_tests::e2e::own_loopback;
use flowgate_tests::listening::listens;
use flowgate_tests::process::Process;
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::skip;

use super::FLOWGATE;

const CALLS: u32 = 40;

/// What sets calls up, and ends them when all have a socket: one that is free would serve the next call.
const CALLER: &str = r#"<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="caller">
<send retrans="500"><![CDATA[

INVITE sip:service@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:caller@[local_ip]>;tag=[call_number]
To: <sip:service@[remote_ip]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:caller@[local_ip]:[local_port]>
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200" />
<send><![CDATA[

ACK sip:service@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:caller@[local_ip]>;tag=[call_number]
To: <sip:service@[remote_ip]>;tag=server
Call-ID: [call_id]
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

]]></send>
<pause milliseconds="4000" />
<send retrans="500"><![CDATA[

BYE sip:service@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: <sip:caller@[local_ip]>;tag=[call_number]
To: <sip:service@[remote_ip]>;tag=server
Call-ID: [call_id]
CSeq: 2 BYE
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200" />
</scenario>
"#;

/// A server, which knows the calls that it has.
const SERVER: &str = r#"<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="server">
<recv request="INVITE" />
<send retrans="500"><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:];tag=server
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port]>
Content-Length: 0

]]></send>
<recv request="ACK" />
<recv request="BYE" />
<send><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

]]></send>
</scenario>
"#;

/// Runs at an address, in a directory of its own, where its scenarios are.
fn sipp(scratch: &Scratch, address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sipp");
    command.args(arguments).args(["-nostdin", "-i", address]).current_dir(scratch.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server at an address that nobody else has, which notes what comes.
fn server(scratch: &Scratch, notes: &str) -> (Server, SocketAddr) {
    let address = SocketAddr::new(own_loopback().parse().expect("an address"), 5_060);
    // A call that is over may come again.
    let again = ["-deadcall_wait", "0", "-trace_msg", "-message_file", notes];
    let arguments = [&["-sf", "server.xml", "-p", "5060"][..], &again].concat();
    let mut command = sipp(scratch, &address.ip().to_string(), &arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Server(command.spawn().expect("sipp"));
    assert!(listens(&mut server.0, address), "sipp has ended");
    (server, address)
}

/// The calls of which something has come.
fn calls(scratch: &Scratch, notes: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(scratch.path().join(notes)).expect("messages");
    let ids = text.lines().filter_map(|line| line.trim().strip_prefix("Call-ID: "));
    ids.map(str::to_owned).collect()
}

/// Has callers at two addresses set up the same calls, one after the other, and says where they came to.
/// Each caller sends by so many sockets as `transport` says. None: there is no sipp.
fn called(transport: &str, cluster: &str) -> Option<[BTreeSet<String>; 2]> {
    if let Err(error) = Command::new("sipp").arg("-v").output() {
        return skip(&format!("sipp (Debian: sip-tester): {error}"));
    }
    let scratch = Scratch::new("sipp");
    for (name, scenario) in [("caller", CALLER), ("server", SERVER)] {
        std::fs::write(scratch.path().join(format!("{name}.xml")), scenario).expect("a file");
    }
    let notes = ["one.log", "two.log"];
    let servers = notes.map(|notes| server(&scratch, notes));
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"sip\"\n\
         [cluster.sip]\naffinity = \"sip-call-id\"\n{cluster}\nbackends = [\"{}\", \"{}\"]\n",
        servers[0].1, servers[1].1
    );
    let mut flowgate = Process::run(FLOWGATE, &config);
    let to = flowgate.address().to_string();
    let count = CALLS.to_string();
    for (address, flows) in [("127.0.0.2", CALLS), ("127.0.0.3", 2 * CALLS)] {
        let many = ["-m", &count, "-l", &count, "-r", "1000", "-t", transport];
        let ids = ["-cid_str", "call-%u@flowgate.test", "-timeout", "60s", "-timeout_error", &to];
        let sockets = ["-max_socket", "1000"];
        let arguments = [&["-sf", "caller.xml"][..], &many, &sockets, &ids].concat();
        let output = sipp(&scratch, address, &arguments).output().expect("sipp");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let status = flowgate.ask_json(&["status"]);
        assert_eq!(status["listeners"][0]["flows_opened"], flows);
    }
    drop(servers);
    Some(notes.map(|notes| calls(&scratch, notes)))
}

#[track_caller]
fn assert_shared_out([one, two]: &[BTreeSet<String>; 2]) {
    assert_eq!(one.len() + two.len(), CALLS as usize, "a call is at one server: {one:?} {two:?}");
    assert!(!one.is_empty() && !two.is_empty(), "all calls are at one server");
}

#[test]
fn each_call_has_one_server_whichever_socket_it_comes_from() {
    let Some(calls) = called("un", "") else { return };
    assert_shared_out(&calls);
}

/// A trunk has one socket for all its calls: each of them is a flow, and has its own server.
#[test]
fn each_call_of_a_trunk_has_its_own_server() {
    let Some(calls) = called("u1", "transactions = \"sip\"") else { return };
    assert_shared_out(&calls);
}
