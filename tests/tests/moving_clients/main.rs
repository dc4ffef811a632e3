//! Clients that move, and a third party that sees their ids and forges them: nobody gets an answer
//! who has not sent to its flow, and no connection is lost whose id is known.
//!
//! A simulation of its own beside `sim/`, whose model knows addresses only: QUIC with ids that servers
//! announce, QUIC with ids that name a server (QUIC-LB), WireGuard, DTLS, and SIP, whose calls are
//! placed by a key. A backend is added on the way. A seed is a list of events; the judge knows what
//! servers, clients and the third party have sent, and of how flows are placed only where a client
//! goes that says nothing.

mod protocol;
mod world;

use std::time::Duration;

use protocol::Protocol;
use world::play;

const SEEDS: u64 = 60;
const STEPS: usize = 250;

/// A bug that takes more seeds than this is as good as not found.
const SEEDS_FOR_A_BUG: u64 = 60;

/// How many there are before another one is added.
const BACKENDS: usize = 3;
const CONNECTIONS: usize = 4;
const FORGERS: usize = 2;

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an id is known after its last use: what the guide promises.
const GRACE: Duration = Duration::from_secs(120);

/// How long what is underway is placed as if a backend that was added were not there: the same.
const ADDED_FOR: Duration = Duration::from_secs(120);

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// An id moves its flow to the address that it came from last.
    AnswersFollowTheId,
    /// Everybody who has sent an id gets its answers.
    AnswersGoToAll,
    /// Neither ids nor keys are looked at.
    IgnoresIds,
    /// A key is not hashed.
    IgnoresKeys,
    /// What servers announce is not remembered.
    LearnsNothing,
    /// It is forgotten with the flow that had it.
    ForgetsWithTheFlow,
    /// What an id says of its server is not read.
    CannotReadIds,
    /// A known flow stays where it is, whatever its client's id says.
    KnownFlowsStay,
    /// An id that a client has made up moves its flow.
    OpeningsMoveFlows,
    /// Another key moves a flow.
    KeysMoveFlows,
    /// What is underway goes to a backend that has just been added.
    ForgetsOrphans,
    /// What is new does not.
    TakesAllForOrphans,
}

const BUGS: [Bug; 12] = [
    Bug::AnswersFollowTheId,
    Bug::AnswersGoToAll,
    Bug::IgnoresIds,
    Bug::IgnoresKeys,
    Bug::LearnsNothing,
    Bug::ForgetsWithTheFlow,
    Bug::CannotReadIds,
    Bug::KnownFlowsStay,
    Bug::OpeningsMoveFlows,
    Bug::KeysMoveFlows,
    Bug::ForgetsOrphans,
    Bug::TakesAllForOrphans,
];

#[test]
fn nobody_gets_an_answer_who_has_not_sent_to_its_flow_and_no_connection_is_lost() {
    let mut seen = Seen::default();
    for protocol in Protocol::ALL {
        for seed in 0..SEEDS {
            if let Err(violation) = play(protocol, seed, None, &mut seen) {
                panic!("{protocol:?}, seed {seed}: {violation}");
            }
        }
    }
    // A simulation proves nothing about what never happens in it.
    let Seen { moved, moved_to_a_new_id, followed, stayed, forged, answered, .. } = seen;
    let Seen { openings, orphans, new_beside_orphans, without_flow, .. } = seen;
    for (what, times) in [
        ("connections moved", moved),
        ("and took another id with them", moved_to_a_new_id),
        ("flows followed another id", followed),
        ("flows stayed although their key was another", stayed),
        ("ids were forged", forged),
        ("answers came", answered),
        ("first flights had the id of a server", openings),
        ("an id that no flow had was known", without_flow),
        ("orphans had a backend before that was added", orphans),
        ("and others began there meanwhile", new_beside_orphans),
    ] {
        assert!(times > 100, "{what}: {times} times");
    }
}

#[test]
fn every_planted_bug_is_found() {
    let is_found = |bug| {
        Protocol::ALL.iter().any(|&protocol| {
            (0..SEEDS_FOR_A_BUG)
                .any(|seed| play(protocol, seed, Some(bug), &mut Seen::default()).is_err())
        })
    };
    let missed: Vec<_> = BUGS.into_iter().filter(|&bug| !is_found(bug)).collect();
    assert!(missed.is_empty(), "not found within {SEEDS_FOR_A_BUG} seeds: {missed:?}");
}

/// What has happened in all seeds.
#[derive(Default)]
struct Seen {
    moved: u32,
    moved_to_a_new_id: u32,
    followed: u32,
    stayed: u32,
    forged: u32,
    answered: u32,
    openings: u32,
    orphans: u32,
    new_beside_orphans: u32,
    without_flow: u32,
}
