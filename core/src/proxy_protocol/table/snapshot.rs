//! The proxies as plain data.

use alloc::vec::Vec;

use super::{BY_KEY, IDLE, ProxiedClient, Proxies, Proxy, WITHOUT_FLOWS};
use crate::collections::indexed_slab::IndexedSlab;
use crate::config::MAX_FLOWS;
use crate::flow::key::FlowKey;
use crate::snapshot::RestoreError;
use crate::snapshot::error::require;
use crate::snapshot::parts::{ProxiesSnapshot, ProxySnapshot};

impl Proxies {
    /// Whether none is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.proxies.len() == 0
    }

    pub(crate) fn snapshot(&mut self) -> ProxiesSnapshot {
        let known = self.proxies.iter().map(|(number, proxy)| ProxySnapshot {
            number: number as u32,
            key: proxy.key.snapshot(),
            client: proxy.proxied.client,
            destination: proxy.proxied.destination,
            until: proxy.until,
        });
        ProxiesSnapshot {
            hash_keys: self.proxies.secret(),
            capacity: self.capacity as u32,
            known: known.collect(),
            vacant: self.proxies.vacant(),
            idle: self.idle.iter(IDLE).collect(),
        }
    }

    /// The proxies, where `of_flows` are the numbers of those of all flows. There must be room for
    /// those of this many flows, and it is made for those of some.
    pub(crate) fn restored(
        snapshot: &ProxiesSnapshot,
        (flows, reserved): (usize, usize),
        of_flows: impl Iterator<Item = u32>,
    ) -> Result<Self, RestoreError> {
        let (capacity, used) =
            (snapshot.capacity as usize, snapshot.known.len() + snapshot.vacant.len());
        let least = if flows == 0 { 0 } else { flows + WITHOUT_FLOWS };
        let most = MAX_FLOWS as usize + WITHOUT_FLOWS;
        let is_possible = (least..=most).contains(&capacity) && used <= capacity;
        require!(is_possible, "an impossible number of proxies");
        let restore = |proxy: &ProxySnapshot| Proxy {
            key: FlowKey::restored(&proxy.key),
            proxied: ProxiedClient { client: proxy.client, destination: proxy.destination },
            flows: 0,
            until: proxy.until,
        };
        let known = snapshot.known.iter().map(|proxy| (proxy.number, restore(proxy)));
        let numbers: Vec<u32> = known.clone().map(|(number, _)| number).collect();
        let numbers = [&numbers[..], &snapshot.vacant].concat();
        let mut restored = Self { proxies: IndexedSlab::new(snapshot.hash_keys), ..Self::new() };
        restored.make_room(capacity, capacity.min(reserved + WITHOUT_FLOWS));
        let is_sound = restored.proxies.update(&numbers, known, &snapshot.vacant);
        require!(is_sound.is_some(), "the number of a proxy is named twice, or never");
        restored.restore_index(snapshot)?;
        for number in of_flows {
            match restored.proxies.get_mut(number as usize) {
                Some(proxy) => proxy.flows += 1,
                None => return Err(RestoreError::Broken("a flow without its proxy")),
            }
        }
        restored.restore_idle(snapshot)?;
        Ok(restored)
    }

    fn restore_index(&mut self, snapshot: &ProxiesSnapshot) -> Result<(), RestoreError> {
        for proxy in &snapshot.known {
            let key = self.proxies[proxy.number as usize].key;
            require!(key.client.proxy().is_none(), "a proxy behind a proxy");
            require!(self.find(&key).is_none(), "a proxy has two numbers");
            self.proxies.add_to(BY_KEY, proxy.number as usize);
        }
        Ok(())
    }

    fn restore_idle(&mut self, snapshot: &ProxiesSnapshot) -> Result<(), RestoreError> {
        for &number in &snapshot.idle {
            let is_idle = self.proxies.get(number as usize).is_some_and(|proxy| proxy.flows == 0);
            let is_new = self.idle.list_of(number as usize).is_none();
            require!(is_idle && is_new, "a proxy without flows that has some, or is there twice");
            self.idle.push_back(IDLE, number as usize);
        }
        let idle = self.proxies.iter().filter(|(_, proxy)| proxy.flows == 0).count();
        require!(idle == snapshot.idle.len(), "a proxy without flows is forgotten");
        Ok(())
    }
}
