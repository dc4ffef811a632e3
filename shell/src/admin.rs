//! The admin API: what may be asked of a running Flowgate, and where.
//!
//! It is HTTP with JSON. All of it is on the control socket, a unix socket that tells who asks:
//!
//! ```text
//! curl --unix-socket /run/flowgate/control.sock http://flowgate/status
//! curl --unix-socket /run/flowgate/control.sock http://flowgate/drain -d '{"backend": "dns/10.0.0.1:53"}'
//! ```
//!
//! `admin.http` serves the half that reads. The commands are clients of the control socket.
//!
//! | module | duty |
//! |---|---|
//! | [`request`] | what can be asked and answered |
//! | [`status`] | the documents that tell how things stand |
//! | [`socket_path`] | where the control socket is, and whose directory that is |
//! | [`socket`] | serves the control socket |
//! | [`http`] | serves `admin.http` |
//! | [`client`] | asks on the control socket |
//! | [`escape`] | text of others, made safe to show |
//!
//! Nothing here touches a worker. A request is handed to a [`Handler`](request::Handler), which has
//! the main thread carry it out.

pub mod client;
pub mod escape;
pub mod http;
pub mod request;
pub mod socket;
#[cfg_attr(windows, path = "admin/socket_path/windows.rs")]
pub mod socket_path;
pub mod status;

mod access;
mod exposition;
mod history;
mod local;
mod metrics;
mod page;
mod reports;
mod router;
mod server;
mod stream;
