//! `flowgate flows`: which flows there are, in a table or as JSON.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::Failure;
use super::ask::ClientOptions;
use super::columns::{Align, Table};
use super::human;
use crate::admin::escape::escaped;
use crate::admin::request::{FlowFilter, Request, Response, network};
use crate::admin::status::{FlowStatus, FlowsDocument};

/// The arguments of `flowgate flows`.
#[derive(Args, Debug)]
pub(super) struct FlowsArguments {
    /// Only flows of clients in this network, or at this address
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    client: Option<IpNet>,
    /// Only flows to this backend
    #[arg(long, value_name = "ADDR", value_parser = parse_backend)]
    backend: Option<SocketAddr>,
    /// Only flows of the listener of this name
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// List at most this many flows
    #[arg(
        long, value_name = "N", default_value_t = FlowFilter::USUAL as u32,
        value_parser = clap::value_parser!(u32).range(1..=FlowFilter::MAX as i64)
    )]
    limit: u32,
    #[command(flatten)]
    options: ClientOptions,
}

pub(super) fn run(arguments: &FlowsArguments) -> Result<(), Failure> {
    let filter = FlowFilter {
        client: arguments.client,
        backend: arguments.backend,
        listener: arguments.listener.clone(),
        limit: arguments.limit as usize,
    };
    let request = Request::Flows { filter };
    arguments.options.print(
        &request,
        |answer| match answer {
            Response::Flows(flows) => Some(flows),
            _ => None,
        },
        text,
    )
}

/// The document as people read it.
fn text(document: &FlowsDocument) -> String {
    let flows = &document.flows;
    let count = match flows.len() {
        0 => return "There is no such flow.\n".to_owned(),
        1 => "1 flow".to_owned(),
        count => format!("{} flows", human::count(count as u64)),
    };
    let more = if document.truncated {
        "; there are more: --limit lists more of them, --client, --backend and --listener choose"
    } else {
        ""
    };
    format!("{}\n{count}{more}.\n", table(flows))
}

fn table(flows: &[FlowStatus]) -> Table<12> {
    let mut table = Table::new([
        ("LISTENER", Align::Left),
        ("CLIENT", Align::Left),
        ("BACKEND", Align::Left),
        ("AGE", Align::Right),
        ("IDLE IN", Align::Right),
        ("TO BACKEND", Align::Right),
        ("BYTES", Align::Right),
        ("TO CLIENT", Align::Right),
        ("BYTES", Align::Right),
        ("ANSWERED", Align::Left),
        ("BY", Align::Left),
        ("PLACED BY", Align::Left),
    ]);
    for flow in flows {
        let client = match flow.local {
            Some(local) => format!("{} at {local}", flow.client),
            None => flow.client.to_string(),
        };
        table.row([
            escaped(&flow.listener),
            client,
            flow.backend.to_string(),
            human::span(Duration::from_millis(flow.age_ms)),
            human::span(Duration::from_millis(flow.idle_deadline_ms)),
            human::count(flow.to_backend.datagrams),
            human::bytes(flow.to_backend.bytes),
            human::count(flow.to_client.datagrams),
            human::bytes(flow.to_client.bytes),
            if flow.answered { "yes" } else { "no" }.to_owned(),
            if flow.fast_path { "kernel" } else { "sockets" }.to_owned(),
            match &flow.placed_by_id {
                Some(id) => format!("{} {id}", flow.placed_by),
                None => flow.placed_by.clone(),
            },
        ]);
    }
    table
}

pub(super) fn parse_network(text: &str) -> Result<IpNet, String> {
    network(text).ok_or_else(|| "expected a network such as 10.0.0.0/8, or an address".to_owned())
}

fn parse_backend(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and port, such as 10.0.0.1:53 or [2001:db8::1]:53".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::TrafficDoc;

    fn flow() -> FlowStatus {
        FlowStatus {
            listener: "d\x1b[2Jn\ns".into(),
            client: "192.0.2.7:5353".parse().unwrap(),
            local: None,
            backend: "10.0.0.1:53".parse().unwrap(),
            age_ms: 192_500,
            idle_deadline_ms: 420,
            to_backend: TrafficDoc { datagrams: 1_234, bytes: 99_999 },
            to_client: TrafficDoc { datagrams: 0, bytes: 0 },
            answered: false,
            fast_path: false,
            placed_by: "source".into(),
            placed_by_id: None,
        }
    }

    #[test]
    fn flows_are_listed_in_columns_with_escaped_names() {
        let other = FlowStatus {
            listener: "dns".into(),
            local: Some("198.51.100.1:53".parse().unwrap()),
            answered: true,
            fast_path: false,
            placed_by: "learned-id".into(),
            placed_by_id: Some("0a0b".into()),
            ..flow()
        };
        let flows = FlowsDocument { flows: vec![flow(), other], truncated: true };
        let expected = r"
LISTENER        CLIENT                             BACKEND         AGE  IDLE IN  TO BACKEND   BYTES  TO CLIENT  BYTES  ANSWERED  BY       PLACED BY
d\u{1b}[2Jn\ns  192.0.2.7:5353                     10.0.0.1:53  3m 12s   420 ms       1,234  100 kB          0    0 B  no        sockets  source
dns             192.0.2.7:5353 at 198.51.100.1:53  10.0.0.1:53  3m 12s   420 ms       1,234  100 kB          0    0 B  yes       sockets  learned-id 0a0b

2 flows; there are more: --limit lists more of them, --client, --backend and --listener choose.
";
        assert_eq!(text(&flows), expected.trim_start(), "\n{}", text(&flows));
    }

    #[test]
    fn no_flows_are_no_table() {
        assert_eq!(text(&FlowsDocument::default()), "There is no such flow.\n");
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(parse_network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(parse_network("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert!(parse_network("192.0.2.7/33").is_err());
    }
}
