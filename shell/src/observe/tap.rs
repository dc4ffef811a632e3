//! Where a tap is: between what a manager is told and what it emits.

use std::net::SocketAddr;

use flowgate_core::backend::Backend;
use flowgate_core::{
    BackendId, FlowId, Instant, ManagerInput, Output, Outputs, SendId, UdpManager, UpstreamId,
};

use crate::datapath::role::Role;
use crate::observe::record::RecordTap;
use crate::observe::trace::TraceTap;

/// Who watches a shard.
#[derive(Debug)]
pub enum Tap {
    /// A trace.
    Trace(TraceTap),
    /// A recording.
    Record(RecordTap),
}

/// The taps of a shard.
#[derive(Default)]
pub struct Taps {
    taps: Vec<Tap>,
    /// What a manager emits on an input that is watched.
    seen: Vec<Output<'static>>,
}

/// What an input is about, as it was before the manager was told of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject {
    /// The flow that it names.
    pub flow: Option<FlowId>,
    /// The client, where that is known.
    pub client: Option<SocketAddr>,
    /// The backend.
    pub backend: Option<SocketAddr>,
    /// When the flow opened, if it has not been answered yet.
    pub unanswered_since: Option<Instant>,
}

/// Something that a manager has decided on.
pub struct Decided<'a, 'p> {
    /// Whether the manager is the listener's own, or its mirror's.
    pub role: Role,
    /// What it was told.
    pub input: &'a ManagerInput<'p>,
    /// What that was about.
    pub subject: Subject,
    /// What it emitted.
    pub outputs: &'a [Output<'p>],
    /// The manager, as it is now.
    pub manager: &'a UdpManager,
    /// When.
    pub now: Instant,
}

impl Taps {
    /// Whether nobody watches.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// Has someone watch from now on.
    pub fn add(&mut self, tap: Tap) {
        self.taps.push(tap);
    }

    /// Nobody watches any more.
    pub fn clear(&mut self) {
        self.taps.clear();
    }

    /// Fetches from memory what is needed when bursts of these clients are handled next.
    pub(crate) fn prefetch(&mut self, clients: impl Iterator<Item = SocketAddr> + Clone) {
        for tap in &mut self.taps {
            if let Tap::Record(tap) = tap {
                tap.prefetch(clients.clone());
            }
        }
    }

    /// Has a manager decide on what happened, and tells those of it that want to know. `local` knows
    /// the address of ours that backends see by an upstream.
    pub(crate) fn decide<'t, O: Outputs<'t>>(
        &mut self,
        role: Role,
        manager: &mut UdpManager,
        (input, now): (ManagerInput<'t>, Instant),
        outputs: &mut O,
        local: fn(&mut O, UpstreamId) -> Option<SocketAddr>,
    ) {
        for tap in &mut self.taps {
            if let Tap::Record(tap) = tap {
                tap.begin(role, manager, now);
            }
        }
        if let ManagerInput::Delivered { .. } = input {
            // Traces tell nothing of that.
            self.taps.iter_mut().for_each(|tap| {
                if let Tap::Record(tap) = tap {
                    tap.see_delivered(role, &input);
                }
            });
            manager.handle_input(input, now, outputs);
            return;
        }
        let subject = Subject::of(&input, manager);
        let (mut is_traced, mut is_recorded) = (false, false);
        for tap in &mut self.taps {
            match tap {
                Tap::Trace(tap) => is_traced |= tap.wants(&input, &subject, manager),
                Tap::Record(tap) => is_recorded |= tap.watch(role, &input, &subject),
            }
        }
        if !is_traced && !is_recorded {
            manager.handle_input(input, now, outputs);
            return;
        }
        let mut seen = recycled(std::mem::take(&mut self.seen));
        let (taps, kept) = (&mut *self.taps, is_traced.then_some(&mut seen));
        manager.handle_input(input, now, &mut Tee { outputs: &mut *outputs, taps, kept });
        let decided = Decided { role, input: &input, subject, outputs: &seen, manager, now };
        let mut local = |flow| local(outputs, decided.manager.flow(flow)?.upstream());
        for tap in &mut self.taps {
            match tap {
                Tap::Trace(tap) if tap.wants(&input, &subject, decided.manager) => {
                    tap.see(&decided, &mut local);
                }
                Tap::Trace(_) => {}
                Tap::Record(tap) => tap.see(&input, &subject, now),
            }
        }
        self.seen = recycled(seen);
    }

    /// A tick is over: what was seen goes to those who asked for it. Taps go whose askers have gone.
    pub(crate) fn flush(&mut self) {
        self.taps.retain_mut(|tap| match tap {
            Tap::Trace(tap) => tap.flush(),
            Tap::Record(tap) => tap.flush(),
        });
    }
}

/// Empties a list and keeps its memory for another payload.
fn recycled<'u>(mut list: Vec<Output<'_>>) -> Vec<Output<'u>> {
    list.clear();
    list.into_iter().map(|_| -> Output<'u> { unreachable!() }).collect()
}

impl Subject {
    /// What an input is about.
    fn of(input: &ManagerInput<'_>, manager: &UdpManager) -> Self {
        match *input {
            ManagerInput::ClientBurst { source, .. } => {
                // A proxy speaks for clients, and who they are is known when it has been heard.
                let is_client = manager.config().accept_proxy_protocol.is_empty();
                Self { client: Some(source).filter(|_| is_client), ..Self::default() }
            }
            ManagerInput::Mirrored { client, .. } => {
                Self { client: Some(client), ..Self::default() }
            }
            ManagerInput::UpstreamBurst { upstream, sender, burst, .. } => {
                let flow = manager.flow_of(upstream, Some(sender), burst.bytes());
                let of_nobody = Self { backend: Some(sender), ..Self::default() };
                flow.map_or(of_nobody, |flow| Self::of_flow(flow, manager))
            }
            ManagerInput::UpstreamError { upstream, remote, .. } => {
                let flow = manager.flow_of(upstream, remote, &[]);
                let of_nobody = Self { backend: remote, ..Self::default() };
                flow.map_or(of_nobody, |flow| Self::of_flow(flow, manager))
            }
            ManagerInput::UpstreamOpenFailed { upstream } => {
                let flow = manager.flow_of(upstream, None, &[]);
                flow.map_or(Self::default(), |flow| Self::of_flow(flow, manager))
            }
            ManagerInput::Undelivered { send_id: SendId::Flow { flow, .. }, .. } => {
                Self::of_flow(flow, manager)
            }
            ManagerInput::Undelivered {
                send_id: SendId::OneWay(backend) | SendId::Copy(backend),
                ..
            } => Self { backend: address_of(backend, manager), ..Self::default() },
            _ => Self::default(),
        }
    }

    fn of_flow(id: FlowId, manager: &UdpManager) -> Self {
        let Some(flow) = manager.flow(id) else {
            return Self { flow: Some(id), ..Self::default() };
        };
        Self {
            flow: Some(id),
            client: Some(flow.client()),
            backend: address_of(flow.backend(), manager),
            unanswered_since: (!flow.is_answered()).then(|| flow.opened()),
        }
    }
}

/// The address of a backend.
pub(crate) fn address_of(backend: BackendId, manager: &UdpManager) -> Option<SocketAddr> {
    manager.backends().get(backend).map(Backend::address)
}

/// Passes on what is emitted, shows it to recordings, and keeps a copy for traces.
struct Tee<'a, 't, O> {
    outputs: &'a mut O,
    taps: &'a mut [Tap],
    kept: Option<&'a mut Vec<Output<'t>>>,
}

impl<'t, O: Outputs<'t>> Outputs<'t> for Tee<'_, 't, O> {
    fn emit(&mut self, output: Output<'t>) {
        for tap in &mut *self.taps {
            if let Tap::Record(tap) = tap {
                tap.output(&output);
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.push(output);
        }
        self.outputs.emit(output);
    }
}
