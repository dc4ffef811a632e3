//! Who serves, as Kubernetes, etcd or Consul know it, written to the file that a balancer watches.
//!
//! The balancer holds no cluster's credentials and knows no cluster's protocol: it reads a file in
//! the format of Prometheus' file-based service discovery. This crate writes such files, one for
//! each service, and each time whole: a reader sees the former set or the next one, never half of
//! one. A set that is empty does not replace one that is not, unless [`BackendsFile`] is told that
//! it may: a source that has lost its memory must not take a service down.
//!
//! `kubernetes`, `etcd` and `consul` follow one service each, for ever, and send each set of
//! [`Backends`] that they see; [`publish`] writes what is sent. Each of the three is a feature of
//! the build, since what they bring along is heavy.
//!
//! ```
//! use flowgate_discover::{Backend, Backends};
//!
//! let mut backends = Backends::default();
//! backends.insert("10.0.0.1:53", Backend { weight: 2, ..Backend::default() });
//! backends.insert("10.0.0.2:53", Backend { drain: true, ..Backend::default() });
//! assert_eq!(
//!     backends.to_json(),
//!     r#"[
//!   {
//!     "targets": [
//!       "10.0.0.2:53"
//!     ],
//!     "labels": {
//!       "drain": "true"
//!     }
//!   },
//!   {
//!     "targets": [
//!       "10.0.0.1:53"
//!     ],
//!     "labels": {
//!       "weight": "2"
//!     }
//!   }
//! ]
//! "#
//! );
//! ```

#![forbid(unsafe_code)]

mod backends;
mod backoff;
mod file;
mod publish;

#[cfg(feature = "consul")]
pub mod consul;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;

pub use backends::{Backend, Backends};
pub use backoff::Backoff;
pub use file::{BackendsFile, Written};
pub use publish::{Sets, publish};
