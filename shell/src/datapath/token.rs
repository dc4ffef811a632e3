//! Which socket an event of the poll is about.

use flowgate_core::UpstreamId;

use crate::datapath::role::Role;

/// A socket of a worker, packed into the one number that the kernel hands back with an event:
/// the shard above, the generation of an upstream below that, and the socket of the shard in the
/// lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Another thread has a command for the worker.
    Wake,
    /// There is news of this host's addresses, links and routes.
    Network,
    /// The listener of a shard.
    Listener {
        /// The shard's place in its worker.
        shard: u32,
    },
    /// An upstream socket.
    Upstream {
        /// The shard's place in its worker.
        shard: u32,
        /// Its name, generation and all: an event of one that has closed is not taken for its
        /// successor's.
        upstream: UpstreamId,
    },
    /// A socket that serves no flow.
    EgressSocket {
        /// The shard's place in its worker.
        shard: u32,
        /// On whose behalf it sends.
        role: Role,
        /// Its number among those of that way, below 2^26.
        egress: u32,
    },
    /// A client's own socket.
    Client {
        /// The shard's place in its worker.
        shard: u32,
        /// Its slot, below 2^26.
        slot: u32,
    },
}

/// From here on sockets are not upstream sockets: there are never this many of those. Two such ranges
/// belong to the egress sockets, one to clients' own sockets, and the rest is free.
const BEYOND_UPSTREAMS: u32 = 0xF000_0000;
const MIRROR: u32 = 0xF400_0000;
const CLIENTS: u32 = 0xF800_0000;
const BEYOND_CLIENTS: u32 = 0xFC00_0000;

const WAKE: u64 = u64::MAX;
const NETWORK: u64 = u64::MAX - 1;
const LISTENER: u32 = u32::MAX;

impl From<Token> for mio::Token {
    fn from(token: Token) -> Self {
        let pack = |shard: u32, socket: u32| (u64::from(shard) << 48) | u64::from(socket);
        Self(match token {
            Token::Wake => WAKE,
            Token::Network => NETWORK,
            Token::Listener { shard } => pack(shard, LISTENER),
            Token::Upstream { shard, upstream } => {
                let generation = u64::from(upstream.generation()) << 32;
                pack(shard, upstream.index() as u32) | generation
            }
            Token::EgressSocket { shard, role: Role::Primary, egress } => {
                pack(shard, BEYOND_UPSTREAMS + egress)
            }
            Token::EgressSocket { shard, role: Role::Mirror, egress } => {
                pack(shard, MIRROR + egress)
            }
            Token::Client { shard, slot } => pack(shard, CLIENTS + slot),
        } as usize)
    }
}

impl From<mio::Token> for Token {
    fn from(token: mio::Token) -> Self {
        let bits = token.0 as u64;
        let (shard, generation, socket) = ((bits >> 48) as u32, (bits >> 32) as u16, bits as u32);
        match (bits, socket) {
            (WAKE, _) => Self::Wake,
            (NETWORK, _) => Self::Network,
            (_, LISTENER) => Self::Listener { shard },
            (_, BEYOND_UPSTREAMS..MIRROR) => {
                Self::EgressSocket { shard, role: Role::Primary, egress: socket - BEYOND_UPSTREAMS }
            }
            (_, MIRROR..CLIENTS) => {
                Self::EgressSocket { shard, role: Role::Mirror, egress: socket - MIRROR }
            }
            (_, CLIENTS..BEYOND_CLIENTS) => Self::Client { shard, slot: socket - CLIENTS },
            (_, index) => Self::Upstream { shard, upstream: UpstreamId::new(index, generation) },
        }
    }
}

// The packing needs 64 bits.
const _: () = assert!(size_of::<usize>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_kernel() {
        for token in [
            Token::Wake,
            Token::Network,
            Token::Listener { shard: 0 },
            Token::Listener { shard: 7 },
            Token::Upstream { shard: 0, upstream: UpstreamId::new(0, 0) },
            Token::Upstream { shard: 7, upstream: UpstreamId::new(BEYOND_UPSTREAMS - 1, u16::MAX) },
            Token::EgressSocket { shard: 7, role: Role::Primary, egress: 0 },
            Token::EgressSocket { shard: 7, role: Role::Primary, egress: (1 << 26) - 1 },
            Token::EgressSocket { shard: 7, role: Role::Mirror, egress: 0 },
            Token::EgressSocket { shard: 7, role: Role::Mirror, egress: (1 << 26) - 1 },
            Token::Client { shard: 0, slot: 0 },
            Token::Client { shard: 7, slot: (1 << 26) - 1 },
        ] {
            assert_eq!(Token::from(mio::Token::from(token)), token);
        }
    }
}
