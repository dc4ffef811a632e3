//! Reading from clients' own sockets. To the manager all of it comes as by the listener.

use flowgate_core::{Direction, ManagerInput};

use super::{Reading, UPSTREAM_BATCH, readable, says_drained, unusable};
use crate::datapath::dispatch::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::sys::mmsg::ReceivedBatch;

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
        let max = UPSTREAM_BATCH.min(self.turn.free());
        let received = self.turn.receive(max, |slots| kernel.receive(&client.socket, slots));
        let is_drained = match &received {
            Ok(received) => received.len() < max && !client.has_error,
            Err(error) => says_drained(error),
        };
        if is_drained {
            client.is_ready = false;
            client.has_error = false;
        }
        // That the client cannot be reached is no matter of its backend's.
        let Ok(received) = received else { return is_drained };
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
        let max = UPSTREAM_BATCH.min(self.turn.free());
        match self.turn.receive(max, |slots| kernel.receive(leaving, slots)) {
            Ok(received) => self.tell(received, dispatch),
            Err(error) if says_drained(&error) => {
                let read = sockets.clients.leaving.pop_front();
                sockets.clients.parting.extend(read);
            }
            // Behind any other error, which is told once, datagrams may wait.
            Err(_) => {}
        }
        true
    }

    /// Closes the sockets that former turns have read to their end, unless something has come that
    /// was on its way when they were given up.
    pub(crate) fn close_parting<K: Kernel>(&mut self, dispatch: &mut Dispatch<'_, 't, K>) {
        let (kernel, sockets) = dispatch.parts();
        let mut late = Vec::new();
        for socket in std::mem::take(&mut sockets.clients.parting) {
            let received = match self.turn.free() {
                0 => None,
                _ => Some(self.turn.receive(1, |slots| kernel.receive(&socket, slots))),
            };
            match received {
                None => sockets.clients.parting.push(socket),
                Some(Err(error)) if says_drained(&error) => {}
                Some(received) => {
                    sockets.clients.leaving.push_back(socket);
                    late.extend(received);
                }
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
                    tos: datagrams.control.tos,
                    ttl: datagrams.control.ttl,
                    burst,
                },
                Err(reason) => unusable(&datagrams, Direction::ToBackend, reason),
            };
            self.manager.handle_input(input, self.now, dispatch);
        }
    }
}
