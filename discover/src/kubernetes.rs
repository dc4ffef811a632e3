//! A service of Kubernetes, by its endpoint slices.
//!
//! An endpoint that is ready serves; one that ends but still serves drains; any other is left out.
//! Where all that are left are ending, they take new flows too, as with Kubernetes' own proxy.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Config, ResourceExt};
use tracing::{info, warn};

use crate::{Backend, Backends, Backoff, Sets};

/// How long a watch lasts before it is begun again where it ended. A connection that has died
/// without a word is found out by then.
const WATCH: Duration = Duration::from_secs(60);

/// Which service, and which of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Where it is; without, where the client is.
    pub namespace: Option<String>,
    /// What it is called.
    pub name: String,
    /// The port's name or number. Without: the one UDP port that it has.
    pub port: Option<String>,
}

/// A client for the cluster that this runs in, or that `KUBECONFIG` or `~/.kube/config` names.
///
/// # Errors
///
/// When there is none, or its credentials cannot be read.
pub async fn client() -> Result<Client, String> {
    let config = Config::infer().await.map_err(|error| error.to_string())?;
    client_of(config)
}

/// A client for a cluster.
///
/// # Errors
///
/// When its credentials are of no use.
pub fn client_of(mut config: Config) -> Result<Client, String> {
    config.read_timeout = Some(WATCH + Duration::from_secs(10));
    Client::try_from(config).map_err(|error| error.to_string())
}

/// Follows one service, for ever.
pub async fn follow(client: Client, service: &Service, sets: &Sets) {
    let api: Api<EndpointSlice> = match &service.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::default_namespaced(client),
    };
    let config = watcher::Config::default()
        .labels(&format!("kubernetes.io/service-name={}", service.name))
        .timeout(WATCH.as_secs() as u32);
    let mut backoff = Backoff::default();
    let mut slices = Slices::default();
    loop {
        let events = watch(api.clone(), config.clone()).default_backoff();
        slices.follow(events, service, sets, &mut backoff).await;
        tokio::time::sleep(backoff.failed()).await;
    }
}

/// The slices of a service, by name.
#[derive(Default)]
struct Slices {
    known: BTreeMap<String, EndpointSlice>,
    /// What a list has said until now: it counts once it is whole.
    listed: BTreeMap<String, EndpointSlice>,
    is_lost: bool,
}

impl Slices {
    /// Takes in events until it takes another list to go on.
    async fn follow(
        &mut self,
        events: impl Stream<Item = Result<Event<EndpointSlice>, watcher::Error>>,
        service: &Service,
        sets: &Sets,
        backoff: &mut Backoff,
    ) {
        pin_mut!(events);
        let name = &service.name;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut self.is_lost) {
                        info!(service = name, "the API answers again");
                    }
                    if self.take(event) {
                        backoff.worked();
                        self.tell(service, sets);
                    }
                }
                // Where the answer itself is that, rather than an event in it, the library would
                // ask for the same again and again.
                Err(
                    watcher::Error::WatchStartFailed(kube::Error::Api(status))
                    | watcher::Error::WatchFailed(kube::Error::Api(status)),
                ) if status.code == 410 => {
                    info!(
                        service = name,
                        "the API no longer has the history of this resource version: listing again"
                    );
                    return;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_lost, true) {
                        warn!(service = name, "API: {error}; keeping what is known, trying again");
                    }
                }
            }
        }
    }

    /// Takes in an event. Says whether what is known is whole.
    fn take(&mut self, event: Event<EndpointSlice>) -> bool {
        match event {
            Event::Init => self.listed = BTreeMap::new(),
            Event::InitApply(slice) => drop(self.listed.insert(slice.name_any(), slice)),
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                return true;
            }
            Event::Apply(slice) => {
                self.known.insert(slice.name_any(), slice);
                return true;
            }
            Event::Delete(slice) => {
                self.known.remove(&slice.name_any());
                return true;
            }
        }
        false
    }

    fn tell(&self, service: &Service, sets: &Sets) {
        let backends = Some(backends(self.known.values(), service.port.as_deref()));
        sets.send_if_modified(|known| {
            let is_new = *known != backends;
            *known = backends;
            is_new
        });
    }
}

fn backends<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, port: Option<&str>) -> Backends {
    let mut backends = Backends::default();
    for slice in slices {
        let is_v6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => continue,
        };
        let Some(port) = port_of(slice, port) else {
            warn!(slice = slice.name_any(), "no such UDP port, or several: name one");
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some(backend) = backend(endpoint) else { continue };
            for address in &endpoint.addresses {
                let address =
                    if is_v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
                backends.insert(address, backend.clone());
            }
        }
    }
    backends.without_draining_all()
}

/// What an endpoint is; nothing where it does not serve.
fn backend(endpoint: &Endpoint) -> Option<Backend> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // What is not said is to be taken for ready, and for serving what is ready.
    let is_ready = conditions.ready.unwrap_or(true);
    let is_serving = conditions.serving.unwrap_or(is_ready);
    let is_ending = conditions.terminating.unwrap_or(false);
    match (is_ready, is_serving, is_ending) {
        (_, true, true) => Some(Backend { drain: true, ..Backend::default() }),
        (true, _, false) => Some(Backend::default()),
        _ => None,
    }
}

fn port_of(slice: &EndpointSlice, wanted: Option<&str>) -> Option<i32> {
    let is_udp = |port: &&EndpointPort| port.protocol.as_deref() == Some("UDP");
    let is_wanted = |port: &&EndpointPort| match wanted {
        None => true,
        Some(wanted) => {
            let number = port.port.map(|port| port.to_string());
            port.name.as_deref() == Some(wanted) || number.as_deref() == Some(wanted)
        }
    };
    let ports = slice.ports.iter().flatten();
    let mut found = ports.filter(is_udp).filter(is_wanted).filter_map(|port| port.port);
    match (found.next(), found.next()) {
        (Some(port), None) => Some(port),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(endpoints: serde_json::Value, ports: serde_json::Value) -> EndpointSlice {
        let slice = json!({
            "metadata": { "name": "dns-abc" }, "addressType": "IPv4",
            "endpoints": endpoints, "ports": ports,
        });
        serde_json::from_value(slice).unwrap()
    }

    fn udp() -> serde_json::Value {
        json!([{ "name": "dns", "port": 53, "protocol": "UDP" }])
    }

    fn conditions(ready: bool, serving: bool, terminating: bool) -> serde_json::Value {
        json!({ "ready": ready, "serving": serving, "terminating": terminating })
    }

    #[test]
    fn conditions_say_who_serves_and_who_drains() {
        let slice = slice(
            json!([
                { "addresses": ["10.0.0.1"], "conditions": conditions(true, true, false) },
                { "addresses": ["10.0.0.2"], "conditions": {} },
                { "addresses": ["10.0.0.3"], "conditions": conditions(false, true, true) },
                { "addresses": ["10.0.0.4"], "conditions": conditions(false, false, true) },
                { "addresses": ["10.0.0.5"], "conditions": conditions(false, false, false) },
            ]),
            udp(),
        );
        let backends = backends([&slice].into_iter(), None);
        let found: Vec<_> = backends.iter().map(|(address, b)| (address, b.drain)).collect();
        assert_eq!(found, [("10.0.0.1:53", false), ("10.0.0.2:53", false), ("10.0.0.3:53", true)]);
    }

    #[test]
    fn a_service_that_ends_as_a_whole_serves_to_the_end() {
        let ending = json!([
            { "addresses": ["10.0.0.3"], "conditions": conditions(false, true, true) },
            { "addresses": ["10.0.0.4"], "conditions": conditions(false, false, true) },
        ]);
        let slice = slice(ending, udp());
        let backends = backends([&slice].into_iter(), None);
        let found: Vec<_> = backends.iter().map(|(address, b)| (address, b.drain)).collect();
        assert_eq!(found, [("10.0.0.3:53", false)]);
    }

    #[test]
    fn a_port_is_chosen_by_name_or_number_or_by_being_the_only_one() {
        let ports = json!([
            { "name": "dns", "port": 53, "protocol": "UDP" },
            { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
            { "name": "game", "port": 7777, "protocol": "UDP" },
        ]);
        let several = slice(json!([]), ports);
        assert_eq!(port_of(&several, None), None);
        assert_eq!(port_of(&several, Some("dns")), Some(53));
        assert_eq!(port_of(&several, Some("7777")), Some(7777));
        assert_eq!(port_of(&several, Some("dns-tcp")), None);
        assert_eq!(port_of(&slice(json!([]), udp()), None), Some(53));
    }
}
