//! A control socket that answers with names which a terminal would obey.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use flowgate::admin::client::{self, ClientError};
use flowgate::admin::request::{FlowFilter, Handler, Request, Response};
use flowgate::admin::socket::ControlSocket;
use flowgate::admin::status::{
    BackendState, BackendStatus, ClusterStatus, CountersDoc, FlowStatus, FlowsDocument, LedgerDoc,
    ListenerStatus, StatusDocument, TrafficDoc,
};
use flowgate_tests::e2e::PATIENCE;
use flowgate_tests::process::output;
use flowgate_tests::scratch::unused_path;

use crate::FLOWGATE;

/// Names that a terminal would obey.
pub(crate) const LISTENER: &str = "o\x1b[2Jd\nd";
pub(crate) const CLUSTER: &str = "c\x1b]0;luster\x07";

/// The same as they are to be shown.
pub(crate) const LISTENER_SHOWN: &str = r"o\u{1b}[2Jd\nd";
pub(crate) const CLUSTER_SHOWN: &str = r"c\u{1b}]0;luster\u{7}";

/// A control socket in a directory of its own, and what it was asked.
pub(crate) struct Served {
    pub(crate) directory: PathBuf,
    pub(crate) socket: ControlSocket,
    pub(crate) asked: Arc<Mutex<Vec<Request>>>,
    pub(crate) is_draining: Arc<AtomicBool>,
}

impl Served {
    pub(crate) fn start() -> Self {
        let directory = unused_path("control");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let is_draining = Arc::<AtomicBool>::default();
        let handler = handler(Arc::clone(&asked), Arc::clone(&is_draining));
        let socket = ControlSocket::start(&directory.join("socket"), handler);
        Self { directory, socket: socket.unwrap_or_else(|e| panic!("{e}")), asked, is_draining }
    }

    pub(crate) fn path(&self) -> &str {
        self.socket.path().to_str().expect("a plain path")
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        client::request(self.socket.path(), request, PATIENCE)
    }

    #[track_caller]
    pub(crate) fn assert_serves(&self) {
        let answer = self.ask(&Request::Reload).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(answer, Response::done());
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket.path()).expect("someone listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    /// Runs the command with some arguments: its exit code, what it printed and complained of.
    pub(crate) fn command(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = output(FLOWGATE, &[arguments, &["--socket", self.path()]].concat());
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Gives documents with ill names, refuses to stop, and does the rest.
fn handler(asked: Arc<Mutex<Vec<Request>>>, is_draining: Arc<AtomicBool>) -> Handler {
    Arc::new(move |request| {
        asked.lock().expect("no panic").push(request.clone());
        match request {
            Request::Status => {
                let draining = is_draining.load(Ordering::Relaxed);
                Response::Status(StatusDocument { draining, ..status() })
            }
            Request::Flows { filter } => {
                let flows = vec![flow(); filter.limit.min(FlowFilter::MAX)];
                Response::Flows(FlowsDocument { flows, truncated: true })
            }
            Request::Stop { .. } => {
                Response::Refused { reasons: vec!["not\x1b[2J today".into(), "nor\never".into()] }
            }
            _ => Response::done(),
        }
    })
}

pub(crate) fn status() -> StatusDocument {
    let traffic = TrafficDoc { datagrams: 12_345, bytes: 1_234_500 };
    let ledger = LedgerDoc {
        queued: TrafficDoc::default(),
        received: traffic,
        forwarded: traffic,
        dropped: BTreeMap::new(),
    };
    let listener = ListenerStatus {
        name: LISTENER.into(),
        address: "127.0.0.1:53".parse().expect("an address"),
        cluster: CLUSTER.into(),
        flows_active: 1,
        flows_max: 1_000,
        flows_opened: 2,
        retries: 0,
        flows_closed: BTreeMap::new(),
        socket_drops: 0,
        upstream_socket_drops: 0,
        upstreams_per_flow: 0,
        upstreams_shared: 0,
        client_sockets: 0,
        client_sockets_failed: 0,
        fast_path: None,
        to_backend: ledger.clone(),
        to_client: ledger,
        mirror: None,
        announce: None,
    };
    let backend = BackendStatus {
        address: "127.0.0.2:53".parse().expect("an address"),
        name: Some("ho\x1bst".into()),
        weight: 1,
        backup: false,
        state: BackendState::Up,
        reason: None,
        since_seconds: None,
        until_seconds: None,
        ejections: BTreeMap::new(),
        flows_active: 1,
        datagrams_to: 12_345,
        datagrams_from: 12_345,
        bytes_to: 1_234_500,
        bytes_from: 1_234_500,
        datagrams_dropped: 0,
        first_answers: None,
        configured_weight: None,
    };
    StatusDocument {
        version: "0.0.0".into(),
        pid: 4_711,
        uptime_seconds: 61.0,
        draining: false,
        listeners: vec![listener],
        clusters: vec![ClusterStatus {
            name: CLUSTER.into(),
            balance: "maglev".into(),
            mode: "session".into(),
            backends: vec![backend],
            ..ClusterStatus::default()
        }],
        counters: CountersDoc::default(),
        ..StatusDocument::default()
    }
}

pub(crate) fn flow() -> FlowStatus {
    FlowStatus {
        listener: LISTENER.into(),
        client: "127.0.0.3:5353".parse().expect("an address"),
        local: None,
        backend: "127.0.0.2:53".parse().expect("an address"),
        age_ms: 1,
        idle_deadline_ms: 2,
        to_backend: TrafficDoc::default(),
        to_client: TrafficDoc::default(),
        answered: true,
        fast_path: false,
        placed_by: "source".into(),
        placed_by_id: None,
    }
}
