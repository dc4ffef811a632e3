//! Going on with a shard that another process or worker has served.

use std::io;
use std::net::IpAddr;

use flowgate_core::{Instant, LocalSource, ManagerInput};

use super::Shard;
use crate::datapath::dispatch::Dispatch;
use crate::datapath::kernel::{Kernel, Linux};
use crate::datapath::token::Token;
use crate::datapath::upstream::{Upstream, UpstreamSnapshot};

/// How many upstream sockets are watched again between two ticks.
const WATCHED_AT_ONCE: usize = 256;

impl Shard<Linux> {
    /// Goes on with sockets that another process or worker had. Those in `missing` are opened again.
    /// The poll of `kernel` tells of the others, of upstream sockets bit by bit as
    /// [`watch_more`](Self::watch_more) is called: with thousands of them that takes milliseconds.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: out of memory.
    pub fn begin(
        &mut self,
        missing: Vec<UpstreamSnapshot>,
        kernel: &mut Linux,
        now: Instant,
    ) -> io::Result<()> {
        self.ready.clear();
        self.is_listener_ready = false;
        for snapshot in missing {
            let (shard, upstream) = (self.sockets.shard, snapshot.id);
            let token = Token::Upstream { shard, upstream };
            let (connection, buffer) =
                ((snapshot.connect(), snapshot.v6), self.sockets.receive_buffer);
            match kernel.open_upstream(connection, snapshot.source, snapshot.ttl, buffer, token) {
                Ok(socket) => {
                    if self.sockets.dont_fragment {
                        kernel.set_dont_fragment(&socket, true);
                    }
                    let mut upstream = Upstream::restore(socket, snapshot);
                    upstream.drops = 0;
                    self.sockets.upstreams.insert(upstream);
                }
                Err(_) => {
                    self.sockets.orphaned_queues.push(snapshot.send_queue);
                    self.handle(ManagerInput::UpstreamOpenFailed { upstream }, kernel, now);
                }
            }
        }
        let scratch = std::mem::take(&mut self.scratch);
        let orphaned = std::mem::take(&mut self.sockets.orphaned_queues);
        let mut dispatch = Dispatch::begin(kernel, &mut self.sockets, scratch);
        orphaned.into_iter().for_each(|queue| dispatch.lose_queued(queue));
        self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
        self.open_egress_sockets(kernel, now);
        self.unwatched_from = Some(0);
        self.sockets.watch(kernel)
    }

    /// Has the poll tell of some more upstream sockets; says whether that was still to be done.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: out of memory.
    pub fn watch_more(&mut self, kernel: &Linux) -> io::Result<bool> {
        let Some(start) = self.unwatched_from else { return Ok(false) };
        let end = start + WATCHED_AT_ONCE;
        let is_more_left = self.sockets.watch_upstreams(start..end, kernel)?;
        self.unwatched_from = is_more_left.then_some(end);
        Ok(true)
    }

    /// Has the upstream sockets that have sent from an address which is gone send from another,
    /// unless they are to send from no other.
    pub fn leave_address(&mut self, gone: IpAddr, kernel: &Linux) {
        for upstream in self.sockets.upstreams.iter() {
            match upstream.source {
                LocalSource::Any | LocalSource::Local { ip: None, .. } => {
                    // One that is connected to nobody is bound to no address.
                    if let Some(backend) = upstream.backend {
                        kernel.leave_source(&upstream.socket, gone, backend);
                    }
                }
                LocalSource::Local { ip: Some(_), .. } | LocalSource::Client(_) => {}
            }
        }
    }
}
