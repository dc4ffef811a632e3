//! Reading from clients' own sockets. To the manager all of it comes as by the listener.

use flowgate_core::{Direction, ManagerInput};

use super::{Reading, Receipt, UPSTREAM_BATCH, readable, unusable};
use crate::datapath::dispatch::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::sys::arena::ReceivedBatch;

impl<'t> Reading<'_, 't> {
    /// Takes one batch from a client's own socket; says whether nothing is left.
    pub(crate) fn read_client<K: Kernel>(
        &mut self,
        slot: u32,
        dispatch: &mut Dispatch<'_, 't, K>,
    ) -> bool {
        let (kernel, sockets) = dispatch.parts();
        // It may have closed since it became ready, and another may have its place.
        let client = sockets.clients.at_mut(slot).filter(|client| client.may_be_read());
        let Some(client) = client else { return true };
        let max = UPSTREAM_BATCH.min(self.tick.free());
        let Receipt { received, .. } = self.receive(kernel, &client.socket, max);
        let is_drained =
            received.as_ref().is_none_or(|batch| batch.len() < max && !client.has_error);
        if is_drained {
            client.is_ready = false;
            client.has_error = false;
        }
        // That the client cannot be reached is no matter of its backend's.
        let Some(received) = received else { return is_drained };
        if !client.coalesces && received.len() > 1 {
            client.coalesces = true;
            kernel.coalesce(&client.socket);
        }
        self.tell(received, dispatch);
        is_drained
    }

    /// Takes one batch from a socket that has been given up. Says whether there was one.
    pub(crate) fn read_leaving<K: Kernel>(&mut self, dispatch: &mut Dispatch<'_, 't, K>) -> bool {
        let (kernel, sockets) = dispatch.parts();
        let Some(leaving) = sockets.clients.leaving.front() else { return false };
        let max = UPSTREAM_BATCH.min(self.tick.free());
        match self.receive(kernel, leaving, max).received {
            Some(received) => self.tell(received, dispatch),
            None => {
                let read = sockets.clients.leaving.pop_front();
                sockets.clients.parting.extend(read);
            }
        }
        true
    }

    /// Closes the sockets that former ticks have read to their end, unless something has come that
    /// was on its way when they were given up.
    pub(crate) fn close_parting<K: Kernel>(&mut self, dispatch: &mut Dispatch<'_, 't, K>) {
        let (kernel, sockets) = dispatch.parts();
        let mut late = Vec::new();
        for socket in std::mem::take(&mut sockets.clients.parting) {
            if self.tick.free() == 0 {
                sockets.clients.parting.push(socket);
            } else if let Some(received) = self.receive(kernel, &socket, 1).received {
                sockets.clients.leaving.push_back(socket);
                late.push(received);
            }
        }
        late.into_iter().for_each(|received| self.tell(received, dispatch));
    }

    fn tell<K: Kernel>(&mut self, received: ReceivedBatch<'t>, dispatch: &mut Dispatch<'_, 't, K>) {
        for datagrams in received {
            self.bytes += datagrams.bytes.len();
            let input = match readable(&datagrams) {
                Ok((source, burst)) => ManagerInput::ClientBurst {
                    source,
                    local: None,
                    tos: datagrams.meta.tos,
                    ttl: datagrams.meta.ttl,
                    burst,
                },
                Err(reason) => unusable(&datagrams, Direction::ToBackend, reason),
            };
            dispatch.decide(self.manager, input, self.now);
        }
    }
}
