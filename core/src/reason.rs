//! Which way datagrams go, and why they or their flows end: the names in reports and metrics.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
pub enum Direction {
    /// From a client to a backend.
    ToBackend,
    /// From a backend to a client.
    ToClient,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ToBackend, Self::ToClient];

    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ToBackend => "to_backend",
            Self::ToClient => "to_client",
        }
    }
}

/// Declares an enum of reasons once: variants, names in metrics and logs, and the list of all.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All reasons, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why datagrams were dropped.
    DropReason {
        /// No backend can take the new flow: there is none, or all are full or weightless.
        NoBackend = "no_backend",
        /// The flow table is full.
        MaxFlows = "max_flows",
        /// The manager is draining and takes no new flows.
        Draining = "draining",
        /// Longer than `max_datagram_size`.
        TooLarge = "too_large",
        /// Sent from port 0, where no answer can go.
        PortZero = "port_zero",
        /// The client is not allowed, or denied.
        Denied = "denied",
        /// The sender is one of our own listeners: a loop, or a forged address.
        OwnAddress = "own_address",
        /// The datagram has been forwarded too often: a loop of balancers.
        TtlExpired = "ttl_expired",
        /// The client has `flows_per_source` flows.
        SourceFlows = "source_flows",
        /// The client's subnet has `flows_per_subnet` flows.
        SubnetFlows = "subnet_flows",
        /// As many flows as `unanswered_flows` allows wait for an answer that may still come.
        UnansweredFlows = "unanswered_flows",
        /// The listener is behind: more new flows come than can be opened, and flows that are known
        /// go first.
        Overload = "overload",
        /// The client opens flows faster than `new_flows_per_second_per_source`.
        SourceRate = "source_rate",
        /// The client sends more datagrams than `datagrams_per_second_per_source`.
        SourceDatagrams = "source_datagrams",
        /// The client sends more bytes than `bytes_per_second_per_source`.
        SourceBytes = "source_bytes",
        /// More bytes than `amplification` allows for what the client has sent.
        Amplification = "amplification",
        /// From a network of `accept_proxy_protocol`, with a PROXY header that is not valid.
        ProxyHeader = "proxy_header",
        /// From a network of `accept_proxy_protocol`, without a PROXY header, and with none before
        /// that would tell whose it is.
        ProxyHeaderMissing = "proxy_header_missing",
        /// A backend's answer to a flow that has closed.
        UnknownFlow = "unknown_flow",
        /// More replies than `responses` or `requests` allow the flow.
        AfterLastReply = "after_last_reply",
        /// Another backend's answer was first, and the client gets that.
        NotFirst = "not_first",
        /// The kernel delivered only a part (`MSG_TRUNC`).
        Truncated = "truncated",
        /// The kernel could not deliver all control messages (`MSG_CTRUNC`), so that where the
        /// datagram was going, or where it ends, is not known.
        ControlTruncated = "control_truncated",
        /// Without what names a question or an answer, where `transactions` tells them apart by it.
        Malformed = "malformed",
        /// Received on an upstream socket, but not from its backend.
        ForeignSource = "foreign_source",
        /// The socket's send buffer is full and so is the queue behind it.
        QueueFull = "queue_full",
        /// Out of file descriptors when the flow's socket was to be opened.
        NoDescriptors = "no_descriptors",
        /// Out of local ports when the flow's socket was to be connected.
        NoPorts = "no_ports",
        /// The source that is configured for the flow's socket is not one of this host's, or of
        /// another family than the backend.
        NoSource = "no_source",
        /// The kernel is out of memory or buffers (`ENOBUFS`, `ENOMEM`).
        NoBuffers = "no_buffers",
        /// A firewall or the routing table forbids it (`EPERM`, `EACCES`).
        NotPermitted = "not_permitted",
        /// No route (`ENETUNREACH`, `EHOSTUNREACH`, ...).
        Unreachable = "unreachable",
        /// The network refused it twice (`ECONNREFUSED`).
        Refused = "refused",
        /// Too long for the path even when sent alone (`EMSGSIZE`).
        MessageSize = "message_size",
        /// Any other error of the kernel.
        SendFailed = "send_failed",
        /// Still waiting to be sent when its flow or the listener closed.
        Closed = "closed",
    }
}

impl DropReason {
    /// Whether clients are refused on purpose, by what is configured or by an operator: no incident.
    pub const fn is_on_purpose(self) -> bool {
        matches!(
            self,
            Self::Draining
                | Self::Denied
                | Self::SourceFlows
                | Self::SubnetFlows
                | Self::SourceRate
                | Self::SourceDatagrams
                | Self::SourceBytes
                | Self::Amplification
                | Self::NotFirst
        )
    }
}

reasons! {
    /// Why a flow ended.
    CloseReason {
        /// No datagram in either direction for `idle_timeout`.
        Idle = "idle",
        /// It had the replies that `responses` or `requests` ask for.
        Complete = "complete",
        /// It was over, waited in vain for an answer, or was idle longest, and a new flow needed
        /// the room.
        Evicted = "evicted",
        /// The drain deadline passed.
        Drained = "drained",
        /// Its upstream socket could not be opened.
        UpstreamFailed = "upstream_failed",
        /// Its backend went down, and `on_backend_down` is `close`.
        BackendDown = "backend_down",
        /// Its backend was removed from the configuration.
        BackendRemoved = "backend_removed",
        /// The mode of its cluster was changed, or what names its questions.
        ModeChanged = "mode_changed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_reason_and_direction_has_a_name_of_its_own() {
        let drops: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(drops.len(), DropReason::COUNT);
        let closes: BTreeSet<_> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(closes.len(), CloseReason::COUNT);
        let is_a_label = |name: &&str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        assert!(drops.iter().chain(&closes).all(is_a_label));
        assert_eq!(Direction::ALL.map(Direction::as_str), ["to_backend", "to_client"]);
    }
}
