//! The contract, rule by rule, as the documentation of `flowgate-core` numbers it.
//!
//! Each rule is watched while the simulator does its worst. The watchers share nothing with the
//! model: they are a second opinion. Rule 2, that a sink never calls back, is kept by the compiler:
//! a sink has no way to reach the manager that is emitting.

use std::collections::BTreeSet;
use std::hint;
use std::time::Duration;

use flowgate_core::config::{Balance, ManagerConfig, Mode, Passive, ReplyFrom, UpstreamMode};
use flowgate_core::proxy_protocol::{ProxyInfo, Tlvs};
use flowgate_core::{
    BackendEvent, BackendId, Burst, Direction, DropReason, FlowId, Instant, ManagerInput,
    NetworkError, Output, PreparedConfig, Repeat, SendId, UdpManager, UpstreamId,
};
use flowgate_tests::sim::{
    Choices, SeededChoices, Setting, Subject, first_failing_seed, report, sweep,
};

const SEEDS: u64 = 96;
const STEPS: usize = 300;

/// Looks at a manager after every input.
trait Watch: Clone + Default + Sync {
    /// Panics where a rule is broken. `before` is the manager as it was before the input.
    fn look(&mut self, seen: &Seen<'_, '_>, before: &UdpManager, after: &UdpManager);
}

/// An input and what came of it.
struct Seen<'a, 'p> {
    input: ManagerInput<'p>,
    now: Instant,
    outputs: &'a [Output<'p>],
}

/// A manager and its watcher.
#[derive(Clone)]
struct Watched<W> {
    manager: UdpManager,
    watch: W,
}

impl<W: Watch> Subject for Watched<W> {
    fn handle_input<'p>(
        &mut self,
        input: ManagerInput<'p>,
        now: Instant,
        outputs: &mut Vec<Output<'p>>,
    ) {
        let before = self.manager.clone();
        self.manager.handle_input(input, now, outputs);
        let seen = Seen { input, now, outputs };
        self.watch.look(&seen, &before, &self.manager);
    }

    fn manager(&self) -> &UdpManager {
        &self.manager
    }

    fn manager_mut(&mut self) -> &mut UdpManager {
        &mut self.manager
    }

    fn replace(&mut self, manager: UdpManager) {
        self.manager = manager;
    }
}

fn assert_holds<W: Watch>() {
    let make =
        |setting: &Setting| Watched { manager: UdpManager::from(setting), watch: W::default() };
    if let Err(seed) = sweep(0..SEEDS, STEPS, make) {
        panic!("{}", report(seed, STEPS, make));
    }
}

#[test]
fn rule_1_for_one_flow_open_comes_first_and_close_last() {
    #[derive(Clone, Default)]
    struct Order {
        open: BTreeSet<FlowId>,
        ever_opened: BTreeSet<FlowId>,
        /// The sockets that are open.
        sockets: BTreeSet<UpstreamId>,
    }
    impl Watch for Order {
        fn look(&mut self, seen: &Seen<'_, '_>, _: &UdpManager, _: &UdpManager) {
            for output in seen.outputs {
                match output {
                    Output::OpenUpstream { upstream, .. } => {
                        assert!(self.sockets.insert(*upstream));
                    }
                    Output::OpenFlow { flow, upstream, has_moved, .. } => {
                        assert!(self.sockets.contains(upstream));
                        assert_ne!(self.ever_opened.insert(*flow), *has_moved);
                        assert_ne!(self.open.insert(*flow), *has_moved);
                    }
                    Output::Send { flow, upstream, .. }
                    | Output::Repeat(Repeat { flow, upstream, .. }) => {
                        assert!(self.open.contains(flow) && self.sockets.contains(upstream));
                    }
                    Output::OpenClient { flow, .. }
                    | Output::Offload { flow, .. }
                    | Output::Recall { flow }
                    | Output::AskActivity { flow }
                    | Output::SendToClient { flow, .. } => {
                        assert!(self.open.contains(flow));
                    }
                    Output::RecordFlow { flow, .. } => assert!(self.open.contains(flow)),
                    Output::CloseFlow { flow, .. } => assert!(self.open.remove(flow)),
                    Output::CloseUpstream { upstream } => assert!(self.sockets.remove(upstream)),
                    Output::SendOneWay { .. }
                    | Output::RecallBackend { .. }
                    | Output::Mirror { .. }
                    | Output::Drop { .. } => {}
                }
            }
        }
    }
    assert_holds::<Order>();
}

#[test]
fn rule_3_every_datagram_is_counted_exactly_once() {
    #[derive(Clone, Default)]
    struct Count;
    impl Watch for Count {
        fn look(&mut self, seen: &Seen<'_, '_>, before: &UdpManager, after: &UdpManager) {
            let arrived = match seen.input {
                ManagerInput::ClientBurst { burst, .. } | ManagerInput::Mirrored { burst, .. } => {
                    [burst.count().into(), 0]
                }
                ManagerInput::UpstreamBurst { burst, .. } => [0, burst.count().into()],
                ManagerInput::Unusable { direction, datagrams, .. } => {
                    Direction::ALL.map(|d| if d == direction { datagrams.into() } else { 0 })
                }
                ManagerInput::FlowActivity { to_backend, to_client, .. } => {
                    [to_backend.datagrams, to_client.datagrams]
                }
                _ => [0, 0],
            };
            for direction in Direction::ALL {
                let [old, new] = [before, after].map(|m| m.counters().ledger(direction));
                let received = new.received.datagrams - old.received.datagrams;
                assert_eq!(received, arrived[direction as usize]);
                let sent = new.forwarded.plus(new.queued);
                assert_eq!(new.received, sent.plus(new.dropped_total()));
                assert!(new.forwarded.datagrams >= old.forwarded.datagrams, "it never decreases");
            }
        }
    }
    assert_holds::<Count>();
}

#[test]
fn rule_4_the_same_inputs_give_the_same_outputs() {
    #[derive(Clone, Default)]
    struct Twin;
    impl Watch for Twin {
        fn look(&mut self, seen: &Seen<'_, '_>, before: &UdpManager, after: &UdpManager) {
            let (mut twin, mut outputs) = (before.clone(), vec![]);
            twin.handle_input(seen.input, seen.now, &mut outputs);
            assert_eq!(outputs, seen.outputs);
            assert_eq!(twin.poll_timeout(), after.poll_timeout());
        }
    }
    assert_holds::<Twin>();
}

/// Configurations and inputs beyond reason: no timeout, endless ones, no room, false reports,
/// news of backends that are not there.
#[test]
fn rule_5_nothing_can_panic_the_manager() {
    for seed in 0..256 {
        let mut choices = SeededChoices::new(seed);
        let mut setting = Setting::choose(&mut choices);
        setting.config.max_datagram_size = choices.one_of(&[0, 1, u16::MAX]);
        beyond_reason(&mut setting.config, &mut choices);
        let mut manager = UdpManager::from(&setting);
        let mut now = setting.start;
        let payload = vec![0; 65_535];
        for _ in 0..200 {
            let mut outputs = vec![];
            let mut config = manager.config().clone();
            beyond_reason(&mut config, &mut choices);
            let new = PreparedConfig::new(config);
            let input = any_input(&mut choices, &manager, &payload, &new);
            now = choices.one_of(&[now, now + Duration::from_secs(1), Instant::FAR_FUTURE]);
            manager.handle_input(input, now, &mut outputs);
            let _ = manager.poll_timeout();
        }
    }
}

fn beyond_reason(config: &mut ManagerConfig, choices: &mut impl Choices) {
    const TIMES: [Duration; 2] = [Duration::ZERO, Duration::MAX];
    let cluster = &mut config.cluster;
    if cluster.balance == Balance::Maglev {
        // Its table takes long to make, and nothing here depends on it.
        cluster.balance = Balance::Random;
    }
    cluster.idle_timeout = choices.one_of(&TIMES);
    cluster.upstream = choices.one_of(&[UpstreamMode::PerFlow, UpstreamMode::Shared]);
    cluster.upstream_quarantine = choices.one_of(&[TIMES[0], TIMES[1]]);
    cluster.health.passive = choices.one_of(&[
        None,
        Some(Passive { silent_flows: 0, back_off: TIMES[0] }),
        Some(Passive { silent_flows: u32::MAX, back_off: TIMES[1] }),
    ]);
    config.max_flows = choices.one_of(&[0, 1, 100]);
    cluster.mode = choices.one_of(&[
        Mode::SESSION,
        Mode::Session { mirrored_per_million: u32::MAX },
        Mode::OneWay,
        Mode::FanOut { reply_from: ReplyFrom::Nobody },
        Mode::FanOut { reply_from: ReplyFrom::Chosen },
        Mode::FanOut { reply_from: ReplyFrom::First },
    ]);
    match choices.below(4) {
        0 => drop(cluster.backends.pop()),
        1 => cluster.backends.extend(cluster.backends.first().copied()),
        2 => cluster.backends.iter_mut().for_each(|backend| backend.removed ^= true),
        _ => cluster.backends.iter_mut().for_each(|b| b.address.set_port(b.address.port() ^ 1)),
    }
    cluster.backends.truncate(20);
}

fn any_input<'p>(
    choices: &mut impl Choices,
    manager: &UdpManager,
    payload: &'p [u8],
    new: &'p PreparedConfig,
) -> ManagerInput<'p> {
    let bytes = &payload[..choices.below(65_536) as usize];
    let stride = choices.below(65_536) as u16;
    let burst = Burst::segmented(bytes, stride).expect("no longer than a burst may be");
    let alive = manager.flow_count().max(1);
    let flow = manager.flows().map(|(id, _)| id).nth(choices.below(alive as u64) as usize);
    let direction = choices.one_of(&Direction::ALL);
    let reason = choices.one_of(DropReason::ALL);
    let (datagrams, bytes) = (choices.below(1 << 32) as u32, choices.below(1 << 40));
    let known = flow.and_then(|flow| manager.flow(flow));
    let backend = known.map(|flow| flow.backend());
    let upstream = known.map_or(UpstreamId::new(7, 7), |flow| flow.upstream());
    let address = backend.and_then(|backend| manager.backends().get(backend)).map(|b| b.address());
    let sender = address.unwrap_or(([10, 0, 0, 1], 53).into());
    match (choices.below(10), flow) {
        (0, Some(_)) => ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst },
        (1, Some(flow)) => {
            let index = BackendId::new(choices.below(25) as usize);
            let of_flow = SendId::Flow { flow, upstream };
            let send_ids = [of_flow, SendId::OneWay(index), SendId::Copy(index)];
            let send_id = choices.one_of(&send_ids);
            let backend = choices.one_of(&[None, Some(index)]);
            if choices.below(2) == 0 {
                return ManagerInput::Delivered { send_id, backend, direction, datagrams, bytes };
            }
            ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes }
        }
        (2, _) => ManagerInput::Unusable { direction, reason, datagrams, bytes },
        (3, _) => ManagerInput::Timeout,
        (4, Some(_)) if choices.one_in(2) => ManagerInput::UpstreamOpenFailed { upstream },
        (4, Some(_)) => {
            let (remote, error) = (Some(sender), NetworkError::Unreachable);
            ManagerInput::UpstreamError { upstream, remote, question: None, error }
        }
        (5, _) if backend.is_some() => {
            let deadline =
                choices.one_of(&[None, Some(Instant::ORIGIN), Some(Instant::FAR_FUTURE)]);
            let drain = BackendEvent::Drain { deadline };
            let event = [BackendEvent::Up, BackendEvent::Down, BackendEvent::Undrain, drain];
            let event = choices.one_of(&event);
            ManagerInput::BackendChanged { backend: backend.expect("some"), event }
        }
        (6, _) => ManagerInput::Configured(new),
        (7, _) => {
            let client = ([choices.byte(), 0, 0, 1], u16::from(choices.byte())).into();
            let proxy_info = ProxyInfo { destination: client, tlvs: Tlvs::NONE };
            let proxy_info = choices.one_of(&[None, Some(proxy_info)]);
            let (tos, ttl) = (choices.byte(), choices.byte());
            ManagerInput::Mirrored { client, local: None, proxy_info, tos, ttl, burst }
        }
        _ => ManagerInput::ClientBurst {
            source: ([choices.byte(), 0, 0, 1], u16::from(choices.byte())).into(),
            local: None,
            tos: choices.byte(),
            ttl: choices.byte(),
            burst,
        },
    }
}

#[test]
fn rule_6_after_a_timeout_the_next_is_later_and_another_at_once_does_nothing() {
    #[derive(Clone, Default)]
    struct Later;
    impl Watch for Later {
        fn look(&mut self, seen: &Seen<'_, '_>, _: &UdpManager, after: &UdpManager) {
            let ManagerInput::Timeout = seen.input else {
                return;
            };
            assert!(after.poll_timeout().is_none_or(|deadline| deadline.at > seen.now));
            let (mut again, mut outputs) = (after.clone(), vec![]);
            again.handle_input(ManagerInput::Timeout, seen.now, &mut outputs);
            assert_eq!(outputs, []);
            assert_eq!(again.poll_timeout(), after.poll_timeout());
        }
    }
    assert_holds::<Later>();
}

#[test]
fn rule_7_a_datagram_that_is_not_admitted_leaves_nothing_behind() {
    #[derive(Clone, Default)]
    struct Nothing;
    impl Watch for Nothing {
        fn look(&mut self, seen: &Seen<'_, '_>, before: &UdpManager, after: &UdpManager) {
            let is_drop = |output: &Output<'_>| matches!(output, Output::Drop { .. });
            let is_request = matches!(seen.input, ManagerInput::ClientBurst { .. });
            if is_request && seen.outputs.iter().all(is_drop) {
                assert_eq!(before.flow_count(), after.flow_count());
                assert_eq!(before.poll_timeout(), after.poll_timeout());
                assert_eq!(before.counters().flows_opened, after.counters().flows_opened);
                assert_eq!(before.counters().flows_moved, after.counters().flows_moved);
            }
        }
    }
    assert_holds::<Nothing>();
}

/// A change of the configuration may allocate. Nothing may after it, also where it allows more.
#[test]
fn rule_8_handling_an_input_allocates_nothing() {
    let make = |setting: &Setting| Frugal::new(setting, 0);
    if let Err(seed) = sweep(0..SEEDS, STEPS, make) {
        panic!("{}", report(seed, STEPS, make));
    }
}

#[test]
fn rule_8_an_allocation_would_be_seen() {
    let make = |setting: &Setting| Frugal::new(setting, 1);
    assert_eq!(first_failing_seed(0..1, STEPS, make), Some(0));
}

/// A manager that may not allocate while it handles an input.
struct Frugal {
    setting: Setting,
    manager: UdpManager,
    /// How many bytes it allocates nevertheless.
    waste: usize,
}

impl Frugal {
    fn new(setting: &Setting, waste: usize) -> Self {
        Self { setting: setting.clone(), manager: UdpManager::from(setting), waste }
    }
}

/// Made again: a vector that is cloned has no room to spare. Only fresh managers are cloned.
impl Clone for Frugal {
    fn clone(&self) -> Self {
        Self::new(&self.setting, self.waste)
    }
}

impl Subject for Frugal {
    fn handle_input<'p>(
        &mut self,
        input: ManagerInput<'p>,
        now: Instant,
        outputs: &mut Vec<Output<'p>>,
    ) {
        outputs.reserve(4_096);
        let allocated = allocation_counter::measure(|| {
            drop(hint::black_box(Vec::<u8>::with_capacity(self.waste)));
            self.manager.handle_input(input, now, outputs);
        });
        // A shared socket has places for flows to all backends, as many as it takes.
        let opens_shared =
            |output: &Output<'_>| matches!(output, Output::OpenUpstream { connect: None, .. });
        let may_allocate = self.waste == 0
            && (matches!(input, ManagerInput::Configured(_)) || outputs.iter().any(opens_shared));
        assert!(may_allocate || allocated.count_total == 0, "{input:?} makes the manager allocate");
    }

    fn manager(&self) -> &UdpManager {
        &self.manager
    }

    fn manager_mut(&mut self) -> &mut UdpManager {
        &mut self.manager
    }

    fn replace(&mut self, manager: UdpManager) {
        self.manager = manager;
    }
}
