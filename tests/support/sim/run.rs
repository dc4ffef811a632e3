//! One run: actions are played, everything is checked, and in the end everything must come to rest.

use std::time::Duration;

use flowgate_core::config::Balance;
use flowgate_core::snapshot::{decode, encode};
use flowgate_core::{Instant, ManagerInput, PreparedConfig, UdpManager};

use super::action::{Action, Pause, Train, When};
use super::catch::catch;
use super::choice::{ByteChoices, SeededChoices};
use super::model::Model;
use super::setting::{PARTIES, Party, Setting};
use super::shrink::shrink;
use super::subject::Subject;
use super::tally::{FOLLOWED, SNAPSHOT, Tally};
use super::trace::Trace;
use super::world::{Event, World};
use super::{Violation, require};

/// A balancer, its world, and its judges.
#[derive(Clone, Debug)]
pub struct Simulation<S> {
    /// What a new process starts with.
    fresh: S,
    fresh_model: Model,
    subject: S,
    model: Model,
    world: World,
    now: Instant,
    /// Whether snapshots are made, or left out.
    makes_snapshots: bool,
    /// What snapshots need not build again.
    prepared: Option<PreparedConfig>,
    /// What went on with a snapshot last, as it was then: what has changed since is noted.
    copy: Option<UdpManager>,
    /// Whether it ends by a drain, or by idle time.
    ends_by_drain: bool,
    actions_played: usize,
    is_settling: bool,
    trace: Trace,
    tally: Tally,
}

/// A run that found something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How many actions had been played, the last one included.
    pub actions_played: usize,
    /// Whether the faults had stopped.
    pub while_settling: bool,
    /// What was found.
    pub violation: Violation,
}

impl Failure {
    /// Whether a run fails in the same phase. What fails in the middle of things is easier to read
    /// than what only shows when all of it comes to rest, though that takes fewer actions.
    pub(super) fn is_like(&self, result: &Result<Tally, Self>) -> bool {
        result.as_ref().is_err_and(|other| other.while_settling == self.while_settling)
    }
}

/// The clock of a run does not go beyond this: 500 years. An [`Instant`] ends after 584.
const END_OF_TIME: Instant = Instant::from_millis(500 * YEAR_MILLIS);
const YEAR_MILLIS: u64 = 365 * 86_400_000;

/// How often timers may be looked at in vain for one flow, which is once for each level of the
/// wheel, until it ends, and again until its socket has rested.
const MOST_CALLS_PER_SOCKET: usize = 2 * 8;

/// A backend returns to service, and its drain ends. That it is silent puts it out once more for
/// each flow, which is counted there.
const MOST_CALLS_PER_BACKEND: usize = 2;

/// After this long every source may open flows again as if it had never opened any.
const A_NEW_RATE: Duration = Duration::from_secs(1);

impl<S: Subject> Simulation<S> {
    /// A balancer to which nothing has happened yet.
    pub fn new(setting: &Setting, subject: S, trace: Trace) -> Self {
        let model = Model::new(setting);
        Self {
            fresh: subject.clone(),
            fresh_model: model.clone(),
            subject,
            model,
            world: World::new(setting),
            now: setting.start,
            makes_snapshots: true,
            prepared: None,
            copy: None,
            ends_by_drain: setting.manager_seed.is_multiple_of(2),
            actions_played: 0,
            is_settling: false,
            trace,
            tally: Tally::default(),
        }
    }

    /// The same, but that it leaves snapshots out. That must make no difference.
    pub fn without_snapshots(self) -> Self {
        Self { makes_snapshots: false, ..self }
    }

    /// Plays one action, and judges what the balancer does.
    pub fn step(&mut self, action: Action) -> Result<(), Violation> {
        self.actions_played += 1;
        self.trace.action(self.actions_played, action);
        match action {
            Action::Wait(pause) => self.wait(pause),
            Action::Timeout(when) => self.fire(when)?,
            Action::Snapshot if self.makes_snapshots => self.go_on_elsewhere()?,
            _ => {
                let events = self.world.act(action, self.now);
                if let (Action::Reconfigure { change, .. }, false) = (action, events.is_empty()) {
                    self.tally.meet(change.name());
                }
                self.tell_all(&events)?;
                self.tell_delivered()?;
            }
        }
        self.restart_if_drained();
        Ok(())
    }

    /// Lets the faults stop, and checks that everything comes to rest, that all traffic flows then,
    /// and that everything comes to rest again.
    pub fn settle(&mut self) -> Result<(), Violation> {
        self.is_settling = true;
        self.trace.note("the faults stop");
        self.world.unblock();
        self.tell_delivered()?;
        let requests = self.world.take_requests();
        self.tell_all(&requests)?;
        let answers = self.world.take_answers(self.now);
        self.tell_all(&answers)?;
        self.heal()?;
        let activity = self.world.take_activity();
        self.tell_all(&activity)?;
        self.run_down()?;
        self.restart_if_drained();
        self.heal()?;
        // What was asked again meanwhile is answered by now, or is never.
        self.world.lose_answers();

        self.trace.note("all clients send");
        self.now = (self.now + A_NEW_RATE).min(END_OF_TIME);
        (0..PARTIES).map(Party::new).try_for_each(|party| self.round_trip(party))?;
        if self.ends_by_drain {
            let deadline = self.now + Duration::from_micros(1_500);
            self.tell(&Event::Told(ManagerInput::Drain { deadline }))?;
        }
        self.run_down()?;
        self.tally.add_counters(self.subject.counters());
        Ok(())
    }

    /// Nothing is said against any backend any more.
    fn heal(&mut self) -> Result<(), Violation> {
        let event = self.world.heal(self.now);
        self.tell_all(&event)
    }

    /// The balancer.
    pub fn subject(&self) -> &S {
        &self.subject
    }

    /// What time it is.
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// The record of what happened.
    pub const fn trace(&self) -> &Trace {
        &self.trace
    }

    fn tell_all(&mut self, events: &[Event]) -> Result<(), Violation> {
        events.iter().try_for_each(|event| self.tell(event))
    }

    /// Tells the balancer of one event, and then of what the sockets have taken of what it ordered.
    fn tell(&mut self, event: &Event) -> Result<(), Violation> {
        self.tell_one(event)?;
        self.tell_delivered()
    }

    fn tell_delivered(&mut self) -> Result<(), Violation> {
        let delivered = self.world.take_delivered();
        delivered.iter().try_for_each(|event| self.tell_one(event))
    }

    /// Tells the balancer of one event, and judges all that can be seen of it afterwards.
    fn tell_one(&mut self, event: &Event) -> Result<(), Violation> {
        if let Event::Configured(configuration) = event {
            self.prepared = Some(PreparedConfig::clone(configuration));
        }
        let input = event.input();
        let mut outputs = vec![];
        let up_before = self.up();
        self.subject.handle_input(input, self.now, &mut outputs);
        let asked = self.subject.poll_timeout();
        self.trace.exchange(self.now, &input, &outputs, asked);
        self.tally.inputs += 1;

        self.world.carry_out(&input, self.now, &outputs, self.subject.manager())?;
        self.model.check(&input, self.now, &outputs)?;
        let (manager, counters) = (self.subject.manager(), self.subject.counters());
        self.model.check_state(manager, counters, self.now)?;
        let is_timeout = matches!(input, ManagerInput::Timeout);
        self.model.check_deadline(asked, self.now, is_timeout)?;
        self.tally.look(&input, &outputs, up_before, self.up());
        self.subject.manager().assert_invariants();
        let replies = self.world.take_replies_of_the_kernel();
        self.tell_all(&replies)
    }

    /// Another balancer goes on, which is made of what this one has written down.
    fn go_on_elsewhere(&mut self) -> Result<(), Violation> {
        let config = self.subject.manager().config();
        if config.cluster.balance == Balance::Maglev && self.prepared.is_none() {
            self.prepared = Some(PreparedConfig::new(config.clone()));
        }
        let changes = self.subject.manager_mut().changes();
        let encoded = encode(&self.subject.snapshot());
        let snapshot = decode(&encoded).map_err(|error| Violation(error.to_string()))?;
        let mut restored = UdpManager::restore(snapshot, self.prepared.as_ref())
            .map_err(|error| Violation(error.to_string()))?;
        restored.assert_invariants();
        if let Some((copy, changes)) = self.copy.take().zip(changes) {
            let changes =
                decode(&encode(&changes)).map_err(|error| Violation(error.to_string()))?;
            let followed = copy.update(changes).map_err(|error| Violation(error.to_string()))?;
            followed.assert_invariants();
            if encode(&{ followed }.snapshot()) != encode(&self.subject.manager_mut().snapshot()) {
                return Err(Violation("what has changed makes another manager".into()));
            }
            self.tally.meet(FOLLOWED);
        }
        self.copy = Some(restored.copy_and_note_changes());
        self.subject.replace(restored);
        self.tally.meet(SNAPSHOT);
        Ok(())
    }

    /// Which backends are up, a bit for each.
    fn up(&self) -> u64 {
        let backends = self.subject.manager().backends().iter();
        backends.fold(0, |up, (_, backend)| up << 1 | u64::from(backend.is_up()))
    }

    fn wait(&mut self, pause: Pause) {
        let idle_timeout = self.world.config().cluster.idle_timeout;
        let nanosecond = Duration::from_nanos(1);
        let pause = match pause {
            Pause::Nanos(nanos) => nanosecond * nanos.into(),
            Pause::Millis(millis) => Duration::from_millis(millis.into()),
            Pause::Third => idle_timeout / 3,
            Pause::AlmostIdle => idle_timeout.saturating_sub(nanosecond),
            Pause::Idle => idle_timeout,
            Pause::Year => Duration::from_millis(YEAR_MILLIS),
        };
        self.now = (self.now + pause).min(END_OF_TIME);
    }

    fn fire(&mut self, when: When) -> Result<(), Violation> {
        let due = self.subject.poll_timeout().map_or(self.now, |deadline| deadline.at);
        let (at, times) = match when {
            When::Now => (self.now, 1),
            When::Early => (Instant::from_nanos(due.as_nanos().saturating_sub(1)), 1),
            When::Due => (due, 1),
            When::Twice => (due, 2),
            When::Late(millis) => (due + Duration::from_millis(millis.into()), 1),
        };
        self.now = at.max(self.now);
        (0..times).try_for_each(|_| self.tell(&Event::Told(ManagerInput::Timeout)))
    }

    /// Fires timeouts as a shell does, until there is nothing to wait for: soon, and then nothing
    /// may be left.
    fn run_down(&mut self) -> Result<(), Violation> {
        let mut calls_left = (self.model.socket_count() + 1) * MOST_CALLS_PER_SOCKET
            + self.subject.manager().backends().len() * MOST_CALLS_PER_BACKEND;
        while self.subject.poll_timeout().is_some() {
            require!(calls_left > 0, "it asks for timeouts without end");
            calls_left -= 1;
            self.fire(When::Due)?;
        }
        let (flows, sockets) = (self.model.flow_count(), self.world.open_sockets());
        require!(flows == 0, "{flows} flows never end");
        require!(sockets == 0, "{sockets} sockets are never closed");
        Ok(())
    }

    /// A client sends something: it must be served if there can be a flow for it, and an echo must
    /// come back.
    fn round_trip(&mut self, party: Party) -> Result<(), Violation> {
        /// Long enough for a tag, short enough for every setting.
        const LEN: u16 = 8;
        const FAR_FROM_EXPIRED: u8 = 64;
        let request = self.world.request(party, 0, FAR_FROM_EXPIRED, Train::single(LEN));
        let must_serve =
            party.can_be_answered() && self.model.would_serve(&request.input(), self.now);
        let sent_before = self.subject.counters().to_backend.forwarded;
        self.tell(&Event::Arrival(request))?;
        let is_served = self.subject.counters().to_backend.forwarded != sent_before;
        require!(is_served == must_serve, "{party:?}: served is {is_served}");

        for answer in self.world.take_answers(self.now) {
            let is_echo = matches!(
                &answer,
                Event::Arrival(parcel) if parcel.stride == LEN && !parcel.is_of_a_stranger()
            );
            let sent_before = self.subject.counters().to_client.forwarded;
            self.tell(&answer)?;
            let has_come_back = self.subject.counters().to_client.forwarded != sent_before;
            require!(has_come_back || !is_echo, "{party:?} gets no answer");
        }
        Ok(())
    }

    /// A new process takes the place of one that has drained.
    fn restart_if_drained(&mut self) {
        if !self.subject.manager().is_drained() {
            return;
        }
        self.trace.note("drained: a new manager takes its place");
        self.tally.add_counters(self.subject.counters());
        self.subject = self.fresh.clone();
        self.model = self.fresh_model.clone();
        self.world.restart();
    }
}

/// Plays actions to the end or to the first violation, and returns the record either way.
pub fn play<S: Subject>(
    setting: &Setting,
    subject: S,
    actions: impl IntoIterator<Item = Action>,
    trace: Trace,
) -> (Result<Tally, Failure>, Trace) {
    play_out(Simulation::new(setting, subject, trace), actions)
}

/// Plays actions to the end or to the first violation, and returns the record either way.
pub(super) fn play_out<S: Subject>(
    mut simulation: Simulation<S>,
    actions: impl IntoIterator<Item = Action>,
) -> (Result<Tally, Failure>, Trace) {
    let outcome = catch(|| {
        actions.into_iter().try_for_each(|action| simulation.step(action))?;
        simulation.settle()
    });
    let result = match outcome {
        Ok(Ok(())) => Ok(simulation.tally),
        Ok(Err(violation)) => Err(violation),
        Err(panic) => Err(Violation(panic)),
    };
    let result = result.map_err(|violation| Failure {
        actions_played: simulation.actions_played,
        while_settling: simulation.is_settling,
        violation,
    });
    (result, simulation.trace)
}

/// What a seed means: a setting, and actions without end.
pub(super) fn script(seed: u64) -> (Setting, impl Iterator<Item = Action>) {
    let mut choices = SeededChoices::new(seed);
    let setting = Setting::choose(&mut choices);
    (setting, Action::stream(choices))
}

/// The first actions of a seed, and snapshots between them.
pub(super) fn actions_of(
    seed: u64,
    steps: usize,
    actions: impl Iterator<Item = Action>,
) -> impl Iterator<Item = Action> {
    Action::with_snapshots(actions.take(steps), SeededChoices::new(!seed))
}

/// Plays `steps` actions of a seed against what `make` makes, with snapshots or without, and returns
/// the hash of its trace.
pub fn run_seed<S: Subject>(
    seed: u64,
    steps: usize,
    makes_snapshots: bool,
    make: impl Fn(&Setting) -> S,
) -> Result<(Tally, u64), Failure> {
    let (setting, actions) = script(seed);
    let simulation = Simulation::new(&setting, make(&setting), Trace::hashed());
    let simulation = if makes_snapshots { simulation } else { simulation.without_snapshots() };
    let (result, trace) = play_out(simulation, actions_of(seed, steps, actions));
    result.map(|tally| (tally, trace.hash()))
}

/// The body of a fuzz target: bytes are read as a setting and actions.
///
/// # Panics
///
/// When the manager does what it must not. The message says what, and after which actions.
pub fn run_bytes(data: &[u8]) {
    let mut choices = ByteChoices::new(data);
    let setting = Setting::choose(&mut choices);
    let next = || (!choices.is_empty()).then(|| Action::choose(&mut choices));
    let actions: Vec<Action> = std::iter::from_fn(next).collect();
    let seed = actions.len() as u64;
    let choices = SeededChoices::new(seed);
    let actions: Vec<Action> = Action::with_snapshots(actions, choices).collect();
    let run = |actions: &[Action]| {
        play(&setting, UdpManager::from(&setting), actions.iter().copied(), Trace::readable())
    };
    if let (Err(failure), _) = run(&actions) {
        let shortest = shrink(actions, |actions| failure.is_like(&run(actions).0));
        let (result, trace) = run(&shortest);
        panic!("{setting:#?}\n{}{:?}", trace.lines(), result.err());
    }
}
