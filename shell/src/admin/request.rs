//! What can be asked of a running Flowgate, and what it answers.
//!
//! On the control socket both are one line of JSON:
//!
//! ```
//! use flowgate::admin::request::{Request, Response};
//!
//! let request: Request = serde_json::from_str(r#"{"command":"drain","backend":"dns/10.0.0.1:53"}"#)?;
//! assert_eq!(request, Request::Drain { backend: "dns/10.0.0.1:53".into(), deadline_ms: None });
//!
//! let response = Response::refused("cluster \"dns\" has no backend 10.0.0.1:53");
//! assert_eq!(
//!     serde_json::to_string(&response)?,
//!     r#"{"result":"refused","reasons":["cluster \"dns\" has no backend 10.0.0.1:53"]}"#,
//! );
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::admin::status::{FlowsDocument, StatusDocument};

/// Answers requests, from whatever door they come. It is called on the threads of the doors, may
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
    /// Read the configuration again, and go over to it if it is valid.
    Reload,
    /// Give a backend no new flows, and let those that it has come to their end.
    Drain {
        /// The backend, as `CLUSTER/ADDRESS`.
        backend: String,
        /// After so many milliseconds its flows are closed. None: they may take as
        /// long as they like.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
    /// Give a backend that was drained new flows again.
    Undrain {
        /// The backend, as `CLUSTER/ADDRESS`.
        backend: String,
    },
    /// Start the program anew, and hand everything over to it.
    Upgrade {
        /// The program. None: the one that runs, which may be another file by now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
    },
    /// What are you, as plain data?
    Snapshot,
    /// Drain everything, then stop.
    Stop {
        /// Stop at once instead.
        #[serde(default)]
        now: bool,
    },
}

impl Request {
    /// Reads a request from a line of JSON, the line break apart.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what one looks like. The text may quote the line.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| {
            format!(
                "not a request: {error}; a request is a line such as {{\"command\":\"status\"}}"
            )
        })
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
    /// How many flows are listed at most. More than [`FlowFilter::MOST`] mean as many as that.
    pub limit: usize,
}

impl FlowFilter {
    /// How many flows are listed where nobody says how many.
    pub const USUAL: usize = 100;

    /// The most flows that one answer lists.
    pub const MOST: usize = 100_000;
}

impl Default for FlowFilter {
    fn default() -> Self {
        Self { client: None, backend: None, listener: None, limit: Self::USUAL }
    }
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
    /// What a process is: a sealed snapshot, in hexadecimal digits.
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

    fn read(json: &str) -> Result<Request, String> {
        Request::parse(json.as_bytes())
    }

    #[test]
    fn each_request_has_one_spelling() {
        let backend = || "dns/10.0.0.1:53".to_owned();
        for (json, request) in [
            (r#"{"command":"status"}"#, Request::Status),
            (r#"{"command":"reload"}"#, Request::Reload),
            (
                r#"{"command":"drain","backend":"dns/10.0.0.1:53","deadline_ms":30000}"#,
                Request::Drain { backend: backend(), deadline_ms: Some(30_000) },
            ),
            (
                r#"{"command":"undrain","backend":"dns/10.0.0.1:53"}"#,
                Request::Undrain { backend: backend() },
            ),
            (r#"{"command":"stop","now":true}"#, Request::Stop { now: true }),
            (
                r#"{"command":"flows","filter":{"client":"10.0.0.0/8","backend":"10.0.0.1:53","listener":"dns","limit":5}}"#,
                Request::Flows {
                    filter: FlowFilter {
                        client: Some("10.0.0.0/8".parse().unwrap()),
                        backend: Some("10.0.0.1:53".parse().unwrap()),
                        listener: Some("dns".into()),
                        limit: 5,
                    },
                },
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(read(json).as_ref(), Ok(&request));
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let filter = FlowFilter { limit: 100, ..FlowFilter::default() };
        assert_eq!(read(r#"{"command":"flows"}"#), Ok(Request::Flows { filter }));
        assert_eq!(read(r#"{"command":"stop"}"#), Ok(Request::Stop { now: false }));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for (json, complaint) in [
            (r#"{"command":"fly"}"#, "unknown variant `fly`, expected one of `status`"),
            (r#"{"command":"stop","later":true}"#, "unknown field `later`"),
            (r#"{"command":"flows","filter":{"clients":"10.0.0.0/8"}}"#, "unknown field `clients`"),
            (r#"{"command":"drain"}"#, "missing field `backend`"),
            (r#"{}"#, "missing field `command`"),
            ("[[[[", "invalid type: sequence"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(complaint), "{json}: {error}");
        }
    }
}
