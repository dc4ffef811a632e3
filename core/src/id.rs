//! Names for things that come and go.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// Names one flow of one manager, for as long as the flow lives and never again.
///
/// The index is small and dense. The generation tells apart the flows that use an index one after
/// another, so that what is told of a flow already closed is recognised and ignored rather than
/// given to its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct FlowId {
    index: u32,
    generation: u32,
}

/// The bit of a generation that marks a [branch](FlowId::is_branch). So anyone who hears of it knows, also
/// when the flow has closed long since.
pub(crate) const BRANCH: u32 = 1;

impl FlowId {
    /// Names the flow of a slot and generation, for a caller that has written them down.
    pub const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }

    /// The slot of the flow: below [`slots_for`](crate::config::slots_for) the manager's
    /// `max_flows`, reused after the flow closes.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// Whether the flow is one of several that carry the datagrams of one client, each to another
    /// backend.
    pub const fn is_branch(self) -> bool {
        self.generation & BRANCH != 0
    }

    /// Which of the flows that have used this slot it is.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// Names one backend of a manager's cluster: its index in [`ClusterConfig::backends`].
///
/// [`ClusterConfig::backends`]: crate::config::ClusterConfig::backends
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct BackendId(u32);

impl BackendId {
    /// Names the backend at an index of that list.
    pub const fn new(index: usize) -> Self {
        Self(index as u32)
    }

    /// The backend's index in the list it was configured from.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names one upstream of one manager: a socket towards backends, for as long as it is open.
///
/// The index is small and dense: the shell uses it as its socket slot, and both parts as its poll
/// token. The generation tells apart the sockets that use an index one after another, so that an
/// event of one that has closed is not taken for its successor's. It comes round after 65,536
/// sockets, which is longer than any event waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct UpstreamId {
    index: u32,
    generation: u16,
}

impl UpstreamId {
    /// Names the upstream of a slot and a generation, as a poll token does.
    pub const fn new(index: u32, generation: u16) -> Self {
        Self { index, generation }
    }

    /// The slot of the upstream, which another may have once it has closed.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// Which of the upstreams that have used this slot it is.
    pub const fn generation(self) -> u16 {
        self.generation
    }
}

/// Names what datagrams to be sent belong to: the outcome of the send is told with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum SendId {
    /// A flow. It may go on with another backend meanwhile, or have closed.
    Flow {
        /// The flow.
        flow: FlowId,
        /// The socket that they leave by, or came by.
        upstream: UpstreamId,
    },
    /// Nothing but the backend they go to. All that goes one way can leave by the same socket.
    OneWay(BackendId),
    /// A backend that gets a copy of what others get too, or have had before. Where all get one, each
    /// such backend needs a socket of its own, so that one that is slow holds up no other.
    Copy(BackendId),
}
