//! A manager and a tap, without sockets.

use flowgate_core::{Instant, Outputs};

use super::*;
use crate::observe::tap::{Tap, Taps};

struct World {
    manager: UdpManager,
    taps: Taps,
    feed: TraceFeed,
    now: Instant,
    /// The upstreams of flows that were answered.
    upstreams: std::collections::BTreeMap<FlowId, flowgate_core::UpstreamId>,
}

impl World {
    fn new(more: &str, filter: Filter) -> Self {
        let toml = format!(
            "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
             [cluster.c]\nbackends = [\"10.0.0.1:53\"]\n{more}\n"
        );
        let config = flowgate_config::parse(&toml, "test.toml").unwrap_or_else(|e| panic!("{e}"));
        let listener = &config.listeners[0];
        let backends = listener.cluster.backends(|_| Vec::new());
        let config = listener.manager_config(listener.address, 100, Vec::new(), false, backends);
        let (sender, feed) = channel();
        let mut taps = Taps::default();
        let origin = Duration::from_secs(1_000);
        taps.add(Tap::Trace(TraceTap::new(Arc::new(filter), sender, "dns".into(), origin)));
        let manager = UdpManager::new(config, 1, Instant::ORIGIN);
        let (now, upstreams) = (Instant::ORIGIN, Default::default());
        Self { manager, taps, feed, now, upstreams }
    }

    /// Tells the manager of something, and the taps if they want to know.
    fn tell(&mut self, input: ManagerInput<'_>) -> Vec<String> {
        self.now += Duration::from_millis(1);
        let told = (input, self.now);
        self.taps.decide(Role::Primary, &mut self.manager, told, &mut Sink, |_, _| None);
        self.taps.flush();
        self.lines().iter().map(ToString::to_string).collect()
    }

    fn lines(&mut self) -> Vec<TraceEvent> {
        let mut all = Vec::new();
        while let Poll::Ready(Some(events)) = self.feed.0.look() {
            all.extend(self.feed.lines(events).into_iter().filter_map(|line| match line {
                TraceLine::Event(event) => Some(*event),
                _ => None,
            }));
        }
        all
    }

    fn asks(&mut self, client: &str) -> Vec<String> {
        self.tell(ManagerInput::ClientBurst {
            source: client.parse().unwrap(),
            local: None,
            tos: 0,
            ttl: 64,
            burst: Burst::single(b"question").unwrap(),
        })
    }

    fn is_answered(&mut self, flow: FlowId) -> Vec<String> {
        let burst = Burst::single(b"answer").unwrap();
        let sender = "10.0.0.1:53".parse().unwrap();
        let upstream = *self
            .upstreams
            .entry(flow)
            .or_insert_with(|| self.manager.flow(flow).expect("a flow that is alive").upstream());
        self.tell(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst })
    }
}

struct Sink;

impl<'p> Outputs<'p> for Sink {
    fn emit(&mut self, _: Output<'p>) {}
}

fn of(client: &str) -> Filter {
    Filter { client: Some(client.parse().unwrap()), ..Filter::default() }
}

#[test]
fn a_flow_is_told_from_its_first_datagram_to_its_end() {
    let mut world = World::new("responses = 1", Filter::default());
    let opened = world.asks("198.51.100.7:4711");
    let flow = world.manager.flows().next().unwrap().0;
    let name = name(flow);
    assert_eq!(
        opened,
        [format!(
            "00:16:40.001 198.51.100.7:4711 -> dns  1 x 8 B  new flow {name} -> 10.0.0.1:53 (rendezvous)"
        )]
    );
    assert_eq!(
        world.asks("198.51.100.7:4711"),
        [format!("00:16:40.002 198.51.100.7:4711 -> dns  1 x 8 B  flow {name} -> 10.0.0.1:53")]
    );
    assert_eq!(
        world.is_answered(flow),
        ["00:16:40.003 198.51.100.7:4711 <- dns  1 x 6 B  answer after 2.0 ms".to_owned()]
    );
    assert_eq!(
        world.is_answered(flow),
        [format!(
            "00:16:40.004 198.51.100.7:4711 <- dns  1 x 6 B  answer to flow {name}, flow {name} complete"
        )]
    );
}

#[test]
fn the_end_of_a_silent_flow_is_told() {
    let mut world = World::new("idle_timeout = \"2s\"", of("198.51.100.0/24"));
    world.asks("198.51.100.7:4711");
    world.asks("203.0.113.7:4711");
    world.now += Duration::from_secs(10);
    let ends = world.tell(ManagerInput::Timeout);
    assert_eq!(ends.len(), 1, "the other client's is not asked for: {ends:?}");
    assert!(
        ends[0].contains("198.51.100.7:4711 -- dns  flow") && ends[0].ends_with("closed: idle")
    );
}

#[test]
fn only_clients_are_told_of_that_were_asked_for() {
    let mut world = World::new("", of("198.51.100.7/32"));
    assert!(world.asks("198.51.100.8:1").is_empty());
    assert_eq!(world.asks("198.51.100.7:1").len(), 1);
    let flows: Vec<_> = world.manager.flows().map(|(id, flow)| (id, flow.client())).collect();
    for (flow, client) in flows {
        let is_meant = client == "198.51.100.7:1".parse().unwrap();
        assert_eq!(world.is_answered(flow).len(), usize::from(is_meant));
    }
}

#[test]
fn only_backends_are_told_of_that_were_asked_for() {
    for (backend, lines) in [("10.0.0.1:53", 1), ("10.0.0.2:53", 0)] {
        let backends = Some(vec![backend.parse().unwrap()]);
        let mut world = World::new("", Filter { backends, ..Filter::default() });
        assert_eq!(world.asks("198.51.100.7:4711").len(), lines, "{backend}");
        let flow = world.manager.flows().next().unwrap().0;
        assert_eq!(world.is_answered(flow).len(), lines, "{backend}");
    }
}

#[test]
fn of_drops_only_drops_are_told_with_the_limit_that_was_met() {
    let limits = "[cluster.c.limits]\nflows_per_source = 1";
    let mut world = World::new(limits, Filter { drops: true, ..Filter::default() });
    assert!(world.asks("198.51.100.7:1").is_empty());
    let dropped = world.asks("198.51.100.7:2");
    assert_eq!(dropped.len(), 1);
    assert!(dropped[0].ends_with("dropped: source_flows (limit 1)"), "{dropped:?}");
}

#[test]
fn what_finds_no_room_is_left_out_and_counted() {
    let (sender, feed) = channel();
    let mut events = vec![TraceEvent::default(); 3];
    sender.send(&mut events, MAX_WAITING + 1);
    assert_eq!(feed.take_left_out(), Some(TraceLine::LeftOut { left_out: 3 }));
    assert_eq!(feed.take_left_out(), None, "it is said once");
    sender.send(&mut vec![TraceEvent::default()], 100);
    assert_eq!(feed.take_left_out(), None, "what was left out takes no room");
}

#[test]
fn a_tap_goes_when_nobody_listens() {
    let mut world = World::new("", Filter::default());
    assert!(!world.taps.is_empty());
    world.feed = channel().1;
    world.taps.flush();
    assert!(world.taps.is_empty());
}
