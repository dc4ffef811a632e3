//! What can be asked of a running Flowgate, and what it answers.
//!
//! A change is asked for by `POST /COMMAND`, with the details as a JSON object:
//!
//! ```
//! use flowgate::admin::request::{Request, Response};
//!
//! let request = Request::from_parts("drain", br#"{"backend": "dns/10.0.0.1:53"}"#)?;
//! assert_eq!(request, Request::Drain { backend: "dns/10.0.0.1:53".into(), deadline_ms: None });
//!
//! let response = Response::refused("cluster \"dns\" has no backend 10.0.0.1:53");
//! assert_eq!(
//!     serde_json::to_string(&response).unwrap(),
//!     r#"{"result":"refused","reasons":["cluster \"dns\" has no backend 10.0.0.1:53"]}"#,
//! );
//! # Ok::<(), String>(())
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::admin::status::{FlowsDocument, StatusDocument};
use crate::control::explain::ExplainedListener;
use crate::observe::record::{RecordOptions, RecordSender};
use crate::observe::trace::TraceSender;

/// Answers requests, from whichever listener they come. It is called on threads that may wait, may
/// take a while, and returns in any case.
pub type Handler = Arc<dyn Fn(Request) -> Response + Send + Sync>;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How do things stand?
    Status,
    /// Which flows are there?
    Flows {
        /// The flows that are meant.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Where would a client's datagrams go now, and why?
    Explain {
        /// The client; port 0 stands for any.
        client: SocketAddr,
        /// The payload of its first datagram, in hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payload: Option<String>,
    },
    /// Read the configuration again, and go over to it if it is valid.
    Reload,
    /// Stop sending new flows to a backend; existing flows go on until they end.
    Drain {
        /// The backend, as `CLUSTER/ADDRESS`.
        backend: String,
        /// After this many milliseconds its flows are closed. None: they may take as
        /// long as they like.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
    /// Give a backend that was drained new flows again.
    Undrain {
        /// The backend, as `CLUSTER/ADDRESS`.
        backend: String,
    },
    /// Give a backend another weight than the configuration says, until that is read again.
    Weight {
        /// The backend, as `CLUSTER/ADDRESS`.
        backend: String,
        /// Its share of new flows, relative to the others. 0: none.
        weight: u32,
    },
    /// Start the program again, and hand everything over to it.
    Upgrade {
        /// The program. None: the one that runs, which may be another file by now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
    },
    /// What are you, as plain data?
    Snapshot,
    /// Tell what is decided from now on. It is asked for as `GET /trace`.
    #[serde(skip)]
    Trace(TraceRequest),
    /// Record from now on. It is asked for as `GET /record`.
    #[serde(skip)]
    Record(RecordRequest),
    /// Drain everything, then stop.
    Stop {
        /// Stop at once instead.
        #[serde(default)]
        now: bool,
    },
}

impl Request {
    /// Reads a request to change something: `command` names it, and `details`, a JSON object or
    /// nothing, are the rest of it.
    ///
    /// # Errors
    ///
    /// What is wrong with it. The text may quote the details.
    pub fn from_parts(command: &str, details: &[u8]) -> Result<Self, String> {
        let mut object = if details.trim_ascii().is_empty() {
            serde_json::Map::new()
        } else {
            serde_json::from_slice(details)
                .map_err(|error| format!("the body is not a JSON object: {error}"))?
        };
        object.insert("command".to_owned(), command.into());
        serde_json::from_value(object.into())
            .map_err(|error| format!("not a valid request to {command}: {error}"))
    }

    /// The name of the command and, as a JSON object, the rest: what
    /// [`from_parts`](Self::from_parts) reads.
    ///
    /// # Errors
    ///
    /// Where a path is not UTF-8.
    pub fn to_parts(&self) -> Result<(String, serde_json::Map<String, serde_json::Value>), String> {
        let value = serde_json::to_value(self).map_err(|error| error.to_string())?;
        let serde_json::Value::Object(mut object) = value else { return Err("no object".into()) };
        match object.remove("command") {
            Some(serde_json::Value::String(command)) => Ok((command, object)),
            _ => Err("no command".into()),
        }
    }
}

/// Which flows to list. A flow is listed when all parts that are given fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Flows of clients in this network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpNet>,
    /// Flows to this backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// Flows of the listener of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// How many flows are listed at most. More than [`FlowFilter::MAX`] mean as many as that.
    pub limit: usize,
}

/// A network, such as `10.0.0.0/8`, or one address.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl FlowFilter {
    /// How many flows are listed where nobody says how many.
    pub const USUAL: usize = 100;

    /// The most flows that one answer lists.
    pub const MAX: usize = 100_000;
}

impl Default for FlowFilter {
    fn default() -> Self {
        Self { client: None, backend: None, listener: None, limit: Self::USUAL }
    }
}

/// A trace that someone asks for, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRequest {
    /// What it is about.
    pub query: TraceQuery,
    /// Where it goes.
    pub sender: TraceSender,
}

/// A recording that a client asks for, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRequest {
    /// What it is to be.
    pub options: RecordOptions,
    /// Where it goes.
    pub sender: RecordSender,
}

/// What a trace is about. All parts that are given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceQuery {
    /// Clients in this network.
    pub client: Option<IpNet>,
    /// This backend: an address, or a name as in the configuration, after its cluster's name and a
    /// slash where others have it too.
    pub backend: Option<String>,
    /// Only what is dropped.
    pub drops: bool,
    /// Whether the datagrams come along.
    pub payload: bool,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "one at a time is made, and handed on once")]
pub enum Response {
    /// How things stand.
    Status(StatusDocument),
    /// The flows.
    Flows(FlowsDocument),
    /// What a client gets from each listener.
    Explained {
        /// In the order of the configuration.
        listeners: Vec<ExplainedListener>,
    },
    /// What a process is: a encoded snapshot, in hexadecimal digits.
    Snapshot {
        /// The digits.
        hex: String,
    },
    /// It is done.
    Done {
        /// What the operator may want to know about it, a line each.
        #[serde(default)]
        notes: Vec<String>,
    },
    /// It is not done, and nothing has changed.
    Refused {
        /// Every reason, a line each.
        reasons: Vec<String>,
    },
}

impl Response {
    /// It is done, and there is nothing more to say.
    pub const fn done() -> Self {
        Self::Done { notes: Vec::new() }
    }

    /// It is refused for one reason.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reasons: vec![reason.into()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_its_parts() {
        for request in [
            Request::Reload,
            Request::Drain { backend: "dns/10.0.0.1:53".into(), deadline_ms: Some(30_000) },
            Request::Undrain { backend: "dns/10.0.0.1:53".into() },
            Request::Weight { backend: "dns/10.0.0.1:53".into(), weight: 3 },
            Request::Stop { now: true },
            Request::Upgrade { binary: Some("/usr/bin/flowgate".into()) },
        ] {
            let (command, details) = request.to_parts().unwrap();
            let details = serde_json::to_vec(&details).unwrap();
            assert_eq!(Request::from_parts(&command, &details), Ok(request));
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        assert_eq!(Request::from_parts("stop", b""), Ok(Request::Stop { now: false }));
        assert_eq!(Request::from_parts("upgrade", b"{}"), Ok(Request::Upgrade { binary: None }));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for (command, details, complaint) in [
            ("fly", "", "unknown variant `fly`, expected one of `status`"),
            ("stop", r#"{"later":true}"#, "unknown field `later`"),
            ("drain", "", "missing field `backend`"),
            ("stop", "[[[[", "not a JSON object"),
            ("stop", r#"{"now":1e999}"#, "not a JSON object"),
        ] {
            let error = Request::from_parts(command, details.as_bytes()).expect_err(details);
            assert!(error.contains(complaint), "{details}: {error}");
        }
    }
}
