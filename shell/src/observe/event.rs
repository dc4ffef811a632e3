//! What a trace says: an event for each burst, with all that was decided on it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use flowgate_config::hex;
use flowgate_core::Direction;
use serde::{Deserialize, Serialize};

use crate::admin::escape::escaped;

/// Something that happened, and what was decided on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Seconds since 1970 (UTC).
    pub time: f64,
    /// The name of the listener.
    pub listener: String,
    /// Whether it is about the copies that the cluster's mirror gets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirror: bool,
    /// Which way the datagrams were going. None: it is not about datagrams.
    pub direction: Option<Direction>,
    /// The client, where that is known.
    pub client: Option<SocketAddr>,
    /// The address of ours that the client calls.
    pub called: Option<SocketAddr>,
    /// How many datagrams there were.
    pub datagrams: u32,
    /// Their bytes, all together.
    pub bytes: u64,
    /// The bytes of each but the last, which may be shorter.
    pub size: u16,
    /// What was decided, in order.
    pub decisions: Vec<Decision>,
    /// The address and port of ours that the backend sees, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<SocketAddr>,
    /// The datagrams end to end, in hexadecimal digits, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// A flow was opened.
    Opened {
        /// The flow.
        flow: String,
        /// Its backend.
        backend: SocketAddr,
        /// What that was chosen by: a way to balance, or an id in the payload.
        by: String,
    },
    /// A flow goes on with another backend.
    Moved {
        /// The flow.
        flow: String,
        /// The backend that it has now.
        backend: SocketAddr,
    },
    /// Datagrams go on to a backend.
    Forwarded {
        /// The flow; none where there are no flows, or it is a copy.
        flow: Option<String>,
        /// The backend.
        backend: Option<SocketAddr>,
        /// How many.
        datagrams: u32,
    },
    /// Datagrams go on to the client.
    Answered {
        /// The flow.
        flow: String,
        /// The backend that they are from.
        backend: Option<SocketAddr>,
        /// How many.
        datagrams: u32,
        /// How long after the flow opened its first answer came, if this is that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_answer_ms: Option<f64>,
    },
    /// The mirror gets copies.
    Mirrored {
        /// How many.
        datagrams: u32,
    },
    /// Datagrams were dropped.
    Dropped {
        /// Why, as metrics name it.
        reason: String,
        /// The limit that was met, where the configuration has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
        /// How many.
        datagrams: u32,
    },
    /// The network, or this system, said something about the flow's upstream socket.
    Failed {
        /// The flow.
        flow: String,
        /// What.
        failure: String,
    },
    /// A flow ended.
    Closed {
        /// The flow.
        flow: String,
        /// Why, as metrics name it.
        reason: String,
    },
}

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TraceLine {
    /// Events came faster than they were read.
    LeftOut {
        /// How many are missing here.
        left_out: u64,
    },
    /// The trace is over.
    End {
        /// Why.
        end: String,
    },
    /// Something happened.
    Event(Box<TraceEvent>),
}

impl TraceEvent {
    /// Whether datagrams were dropped.
    pub fn is_drop(&self) -> bool {
        self.decisions.iter().any(|decision| matches!(decision, Decision::Dropped { .. }))
    }

    /// The datagrams, if they came along.
    pub fn payload_bytes(&self) -> Option<Vec<u8>> {
        hex::decode(self.payload.as_ref()?)
    }

    /// What was decided, in words.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        for (at, decision) in self.decisions.iter().enumerate() {
            // A new flow carries what opened it: that goes without saying.
            let is_said = matches!(decision, Decision::Forwarded { datagrams, .. }
            if *datagrams == self.datagrams
                && at.checked_sub(1).is_some_and(|before| matches!(
                    self.decisions[before],
                    Decision::Opened { .. } | Decision::Moved { .. }
                )));
            if !is_said {
                words.push(self.word(decision));
            }
        }
        if words.is_empty() {
            words.push("nothing".to_owned());
        }
        if self.mirror {
            words.insert(0, "in the mirror".to_owned());
        }
        words.join(", ")
    }

    fn word(&self, decision: &Decision) -> String {
        let some = |datagrams: u32| match datagrams {
            all if all == self.datagrams => String::new(),
            some => format!("{some} of them "),
        };
        match decision {
            Decision::Opened { flow, backend, by } => {
                format!("new flow {flow} -> {backend} ({by})")
            }
            Decision::Moved { flow, backend } => format!("flow {flow} moves -> {backend}"),
            Decision::Forwarded { flow, backend, datagrams } => {
                let whom = backend.map_or("its backend".to_owned(), |backend| backend.to_string());
                match flow {
                    Some(flow) => format!("{}flow {flow} -> {whom}", some(*datagrams)),
                    None => format!("{}-> {whom}", some(*datagrams)),
                }
            }
            Decision::Answered { flow, datagrams, first_answer_ms, .. } => match first_answer_ms {
                Some(ms) => format!("{}answer after {ms:.1} ms", some(*datagrams)),
                None => format!("{}answer to flow {flow}", some(*datagrams)),
            },
            Decision::Mirrored { datagrams } => format!("{}copied to the mirror", some(*datagrams)),
            Decision::Dropped { reason, limit, datagrams } => {
                let limit = limit.map_or(String::new(), |limit| format!(" (limit {limit})"));
                format!("{}dropped: {reason}{limit}", some(*datagrams))
            }
            Decision::Failed { flow, failure } => format!("upstream of flow {flow}: {failure}"),
            Decision::Closed { flow, reason } if reason == "complete" => {
                format!("flow {flow} complete")
            }
            Decision::Closed { flow, reason } => format!("flow {flow} closed: {reason}"),
        }
    }
}

/// One line for people, which no name of a listener can break.
impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A number of seconds is right to a microsecond, and no more.
        let time = Duration::from_micros((self.time * 1e6).round() as u64);
        let time = humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + time).to_string();
        // The time of day of `2026-01-01T12:00:01.123Z`.
        let time = time.get(11..23).unwrap_or(&time);
        let arrow = match self.direction {
            Some(Direction::ToBackend) => "->",
            Some(Direction::ToClient) => "<-",
            None => "--",
        };
        let client = self.client.map_or("?".to_owned(), |client| client.to_string());
        write!(f, "{time} {client} {arrow} {}  ", escaped(&self.listener))?;
        if self.direction.is_some() {
            write!(f, "{} x {} B", self.datagrams, self.size)?;
            if u64::from(self.datagrams) * u64::from(self.size) != self.bytes {
                write!(f, " ({} B)", self.bytes)?;
            }
            f.write_str("  ")?;
        }
        f.write_str(&escaped(&self.words()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(direction: Direction, decisions: Vec<Decision>) -> TraceEvent {
        TraceEvent {
            time: 1_764_244_801.123,
            listener: "d\nns".into(),
            direction: Some(direction),
            client: Some("192.0.2.7:40123".parse().unwrap()),
            datagrams: 2,
            bytes: 90,
            size: 45,
            decisions,
            ..TraceEvent::default()
        }
    }

    fn dropped(reason: &str, limit: Option<u64>, datagrams: u32) -> Decision {
        Decision::Dropped { reason: reason.into(), limit, datagrams }
    }

    #[test]
    fn an_event_is_a_line_of_plain_words() {
        let backend = "10.0.0.1:53".parse().unwrap();
        let flow = || "12.3".to_owned();
        let opened = Decision::Opened { flow: flow(), backend, by: "rendezvous".into() };
        let to = |datagrams| Decision::Forwarded {
            flow: Some(flow()),
            backend: Some(backend),
            datagrams,
        };
        let answer = Decision::Answered {
            flow: flow(),
            backend: Some(backend),
            datagrams: 2,
            first_answer_ms: Some(2.1),
        };
        let closed = |reason: &str| Decision::Closed { flow: flow(), reason: reason.into() };
        for (event, expected) in [
            (
                event(Direction::ToBackend, vec![opened, to(2)]),
                r"12:00:01.123 192.0.2.7:40123 -> d\nns  2 x 45 B  new flow 12.3 -> 10.0.0.1:53 (rendezvous)",
            ),
            (
                event(Direction::ToBackend, vec![to(2)]),
                r"12:00:01.123 192.0.2.7:40123 -> d\nns  2 x 45 B  flow 12.3 -> 10.0.0.1:53",
            ),
            (
                event(Direction::ToClient, vec![answer, closed("complete")]),
                r"12:00:01.123 192.0.2.7:40123 <- d\nns  2 x 45 B  answer after 2.1 ms, flow 12.3 complete",
            ),
            (
                event(Direction::ToBackend, vec![to(1), dropped("source_flows", Some(20), 1)]),
                r"12:00:01.123 192.0.2.7:40123 -> d\nns  2 x 45 B  1 of them flow 12.3 -> 10.0.0.1:53, 1 of them dropped: source_flows (limit 20)",
            ),
            (
                TraceEvent { direction: None, ..event(Direction::ToBackend, vec![closed("idle")]) },
                r"12:00:01.123 192.0.2.7:40123 -- d\nns  flow 12.3 closed: idle",
            ),
        ] {
            assert_eq!(event.to_string(), expected);
        }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let lines = [
            TraceLine::Event(Box::new(event(
                Direction::ToBackend,
                vec![dropped("denied", None, 2)],
            ))),
            TraceLine::LeftOut { left_out: 7 },
            TraceLine::End { end: "its time is over".into() },
        ];
        for line in lines {
            let json = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<TraceLine>(&json).unwrap(), line, "{json}");
        }
    }

    #[test]
    fn a_payload_is_hexadecimal_digits() {
        let with = |payload: &str| TraceEvent {
            payload: Some(payload.into()),
            ..event(Direction::ToClient, Vec::new())
        };
        assert_eq!(with("00ff2a").payload_bytes(), Some(vec![0, 255, 42]));
        assert_eq!(with("00f").payload_bytes(), None);
        assert_eq!(with("0g").payload_bytes(), None);
        assert_eq!(event(Direction::ToClient, Vec::new()).payload_bytes(), None);
    }
}
