//! The admin interface: what may be asked of a running Flowgate, and where.
//!
//! | module | duty |
//! |---|---|
//! | [`request`] | what can be asked and answered |
//! | [`status`] | the documents that tell how things stand |
//! | [`socket_path`] | where the control socket is, and whose directory that is |
//! | [`socket`] | serves the control socket |
//! | [`client`] | asks on it |
//! | [`escape`] | text of others, made safe to show |
//! | [`http`] | the HTTP listener of `admin.http` |
//!
//! The protocol: a client connects to the unix socket, writes one line of JSON, a
//! [`Request`](request::Request), and reads one, a [`Response`](request::Response). Then the
//! connection is over.
//!
//! Nothing here touches a worker. A request is handed to a [`Handler`](request::Handler), which has
//! the main thread carry it out.

pub mod client;
pub mod escape;
pub mod http;
pub mod request;
pub mod socket;
pub mod socket_path;
pub mod status;

mod exposition;
mod line;
mod metrics;
mod page;
mod reports;
mod site;
