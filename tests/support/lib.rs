//! Support for the tests.

pub mod e2e;
pub mod echo_server;
pub mod fake_kernel;
pub mod forger;
pub mod fuzz;
pub mod listening;
pub mod modes;
pub mod netns;
pub mod process;
pub mod quic_peers;
pub mod resolver;
pub mod scratch;
pub mod service_manager;
pub mod shell_world;
pub mod sim;
pub mod skip;
