//! The simulator: whole lives of a balancer, grown from a seed.
//!
//! A [`Setting`] says what is built: a configuration, and how each backend behaves. A list of
//! [`Action`]s says what happens to it. Both are drawn from [`Choices`], which are a seed, or the
//! bytes of a fuzzer, or written by hand: one grammar, three drivers.
//!
//! A [`Simulation`] plays the actions in a [world](World) of clients, backends and a network that
//! loses, duplicates, delays, reorders and coalesces. It tells the balancer what happened, and
//! judges every answer three times:
//!
//! - the [`Model`] predicts every output, every counter, every deadline;
//! - the world follows the tags in the payloads, and knows whom each datagram is for;
//! - the balancer's own invariants are asserted.
//!
//! Then the faults stop, and [`Simulation::settle`] checks that all traffic flows and every flow
//! ends. `docs/testing.md` is the guide.

mod account;
mod action;
mod catch;
mod choice;
mod forge;
mod model;
mod payload;
pub mod planted;
mod recorded;
mod run;
mod setting;
mod shrink;
mod subject;
mod sweep;
mod tally;
mod trace;
mod wire;
mod world;

pub use action::{
    Action, BackendPick, CHANGES, Change, Fate, FlowPick, Newcomer, News, Pause, SocketFailure,
    Train, When,
};
pub use choice::{ByteChoices, Choices, SeededChoices};
pub use model::Model;
pub use recorded::Scenario;
pub use run::{Failure, Simulation, play, run_bytes, run_seed};
pub use setting::{Setting, Temper};
pub use shrink::shrink;
pub use subject::Subject;
pub use sweep::{first_failing_seed, replay, report, report_of, sweep};
pub use tally::{FOLLOWED, KERNEL, SNAPSHOT, TURNS, Tally};
pub use trace::Trace;
pub use world::World;

/// Something the balancer did that it must not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns a [`Violation`] unless a condition holds, with a message as `format!` makes it.
macro_rules! require {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::sim::Violation(format!($($message)+)));
        }
    };
}
use require;
