//! The control plane, on threads that no worker waits for.
//!
//! | module | duty |
//! |---|---|
//! | [`signals`] | what the system tells this process to do |
//! | [`supervisor`] | signals, requests, reloads, upgrades, one after another |
//! | [`server`] | starts, changes, asks and stops the workers |
//! | [`service_state`] | what probes and operators have said of a backend |
//! | [`io`] | by which calls of the system datagrams come and go |
//! | [`accept`] | whether the kernel can give clients sockets of their own |
//! | [`source`] | whether this host can have the bind addresses that clusters name |
//! | [`probe`] | asks backends how they are |
//! | `announce` | tells routers whether to send traffic here |
//! | [`discovery`] | finds backends in files, over HTTP and by SRV records |
//! | [`explain`] | where a client's datagrams would go, and why |
//! | [`resolve`] | keeps the addresses of backends with names fresh |
//! | [`flow_log`] | a line for each flow that has ended |
//! | [`systemd`] | what the service manager wants to know, and hands over |
//! | [`task`] | tasks without which the process does not go on |
//! | [`log`] | what operators read |
//! | [`usage`] | what the process uses of the system |

pub mod accept;
pub(crate) mod announce;
pub mod discovery;
pub mod explain;
pub mod flow_log;
pub mod io;
pub mod log;
pub mod probe;
pub mod reach;
pub mod resolve;
pub mod server;
pub mod service_state;
pub mod signals;
pub mod source;
pub mod supervisor;
#[cfg_attr(not(target_os = "linux"), path = "control/systemd/none.rs")]
pub mod systemd;
pub mod task;
pub mod usage;
