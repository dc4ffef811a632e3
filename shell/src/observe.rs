//! Watching the managers at work: what each was told, what it decided on that, for anyone who asks.
//!
//! A tap sits where inputs go into a manager and outputs come out of it, and sees both. It is asked
//! about every input only while there is one; otherwise that costs one branch. It never holds up a
//! worker: what it has to say goes into a bounded channel, and what finds that full is left out and
//! counted.
//!
//! | module | duty |
//! |---|---|
//! | [`tap`] | where taps are, and what each is told |
//! | [`trace`] | the tap of `flowgate trace` |
//! | [`record`] | the tap of `flowgate record` |
//! | [`event`] | what a trace says, as JSON and in words |
//! | [`pcapng`] | the same as a capture for Wireshark |

pub mod event;
mod feed;
pub mod pcapng;
pub mod record;
pub mod tap;
pub mod trace;
