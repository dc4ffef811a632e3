//! The proxies that speak for clients, and whom each has spoken of last.

#[cfg(feature = "snapshot")]
mod snapshot;

use core::net::SocketAddr;

use crate::collections::indexed_slab::{Entry, IndexedSlab};
use crate::collections::lists::Lists;
use crate::flow::key::FlowKey;
use crate::local_addr::LocalAddr;
use crate::random::Random;
use crate::time::Instant;

/// How many proxies without a flow can be remembered besides those that have some.
const WITHOUT_FLOWS: usize = 1_024;

/// The index by keys, of all of them.
const BY_KEY: usize = 0;

/// The list of the proxies without a flow, in the order in which they are forgotten.
const IDLE: usize = 0;

/// What a proxy's header says of the datagrams that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProxiedClient {
    /// The client that sent them.
    pub(crate) client: SocketAddr,
    /// The address that the client called.
    pub(crate) destination: SocketAddr,
}

/// The proxies, each a socket of its own that calls one of our addresses.
///
/// One that has flows is remembered as long as it has, and then until a time that its last datagram
/// or the end of its last flow puts off. Takes no memory before it is told to make room, and never
/// more afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Proxies {
    proxies: IndexedSlab<Proxy, 1>,
    idle: Lists,
    capacity: usize,
}

#[derive(Clone, Debug)]
struct Proxy {
    /// The proxy's address, and the local address that it calls.
    key: FlowKey,
    proxied: ProxiedClient,
    flows: u32,
    /// When it is forgotten, where it has no flow.
    until: Instant,
}

impl Entry for Proxy {
    #[cfg(feature = "snapshot")]
    fn vacant() -> Self {
        let nobody = SocketAddr::from(([0; 4], 0));
        let proxied = ProxiedClient { client: nobody, destination: nobody };
        Self { key: FlowKey::new(nobody, None), proxied, flows: 0, until: Instant::ORIGIN }
    }

    fn hash(&self, _index: usize, secret: (u64, u64)) -> u64 {
        self.key.hash(secret)
    }
}

impl Proxies {
    pub(crate) fn new() -> Self {
        Self { proxies: IndexedSlab::new((0, 0)), idle: Lists::new(1, 0), capacity: 0 }
    }

    /// Allows for the proxies of this many flows, if they were fewer, and makes room for those of some.
    pub(crate) fn reserve(&mut self, flows: usize, reserved: usize, random: &mut Random) {
        if self.capacity == 0 {
            self.proxies = IndexedSlab::new((random.draw(), random.draw()));
        }
        self.make_room(self.capacity.max(flows + WITHOUT_FLOWS), reserved + WITHOUT_FLOWS);
    }

    fn make_room(&mut self, capacity: usize, reserved: usize) {
        self.capacity = capacity;
        self.proxies.reserve(reserved);
        self.proxies.reserve_index(BY_KEY, reserved * 2);
        self.idle.reserve(reserved);
    }

    /// Notes what a proxy says in a header, and returns the proxy's number, which stands for it as
    /// long as it is remembered: until `until`, or as long as it has flows. `None` where there is
    /// no room, since there are too many proxies with flows.
    pub(crate) fn note(
        &mut self,
        proxy: &FlowKey,
        proxied: ProxiedClient,
        until: Instant,
    ) -> Option<u32> {
        let number = match self.find(proxy) {
            Some(number) => {
                self.proxies[number as usize].proxied = proxied;
                number
            }
            None => self.insert(Proxy { key: *proxy, proxied, flows: 0, until })?,
        };
        self.put_off(number, until);
        Some(number)
    }

    /// The number of a proxy, and what it has said last, if that still holds at `now`.
    pub(crate) fn recall(
        &mut self,
        proxy: &FlowKey,
        now: Instant,
        until: Instant,
    ) -> Option<(u32, ProxiedClient)> {
        let number = self.find(proxy)?;
        let proxy = &self.proxies[number as usize];
        if proxy.flows == 0 && proxy.until <= now {
            return None;
        }
        let proxied = proxy.proxied;
        self.put_off(number, until);
        Some((number, proxied))
    }

    /// Counts a flow of a proxy's client.
    pub(crate) fn opened(&mut self, number: u32) {
        self.proxies[number as usize].flows += 1;
        self.idle.remove(number as usize);
    }

    /// Counts the end of a flow of a proxy's client. Without any other the proxy is remembered
    /// until `until`.
    pub(crate) fn closed(&mut self, number: u32, until: Instant) {
        self.proxies[number as usize].flows -= 1;
        self.put_off(number, until);
    }

    /// The address of a proxy, and the local address that it calls.
    pub(crate) fn return_path(&self, number: u32) -> (SocketAddr, Option<LocalAddr>) {
        let key = &self.proxies[number as usize].key;
        (key.client.address(), key.local())
    }

    fn put_off(&mut self, number: u32, until: Instant) {
        let proxy = &mut self.proxies[number as usize];
        if proxy.flows == 0 {
            proxy.until = until;
            self.idle.push_back(IDLE, number as usize);
        }
    }

    fn find(&self, key: &FlowKey) -> Option<u32> {
        let hash = key.hash(self.proxies.secret());
        self.proxies.find(BY_KEY, hash, |proxy| proxy.key == *key).map(|number| number as u32)
    }

    fn insert(&mut self, proxy: Proxy) -> Option<u32> {
        if self.proxies.len() >= self.capacity {
            self.forget(self.idle.first(IDLE)?);
        }
        let number = self.proxies.insert(proxy);
        self.proxies.add_to(BY_KEY, number);
        Some(number as u32)
    }

    fn forget(&mut self, number: usize) {
        self.idle.remove(number);
        self.proxies.remove_from(BY_KEY, number);
        self.proxies.remove(number);
    }

    /// Panics unless everything agrees with itself and with the numbers of the proxies of all
    /// flows.
    pub(crate) fn assert_invariants(&self, of_flows: impl Iterator<Item = u32>) {
        let mut flows: u64 = 0;
        for number in of_flows {
            flows += 1;
            assert!(self.proxies.get(number as usize).is_some(), "a flow without its proxy");
        }
        let counted: u64 = self.proxies.iter().map(|(_, proxy)| u64::from(proxy.flows)).sum();
        assert_eq!(counted, flows, "a proxy's flows were lost count of");
        assert!(self.proxies.len() <= self.capacity, "more proxies than there is room for");
        assert_eq!(self.proxies.indexed(BY_KEY).len(), self.proxies.len(), "a proxy is lost");
        for (number, proxy) in self.proxies.iter() {
            assert_eq!(self.find(&proxy.key), Some(number as u32), "a proxy is not found");
            let queue = (proxy.flows == 0).then_some(IDLE);
            assert_eq!(self.idle.list_of(number), queue, "a proxy in the wrong queue");
        }
    }
}

#[cfg(test)]
mod tests;
