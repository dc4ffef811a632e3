//! The proxies as plain data.

use hashbrown::HashTable;

use super::{IDLE, Relay, Relays, Said, WITHOUT_FLOWS};
use crate::config::MOST_FLOWS;
use crate::flow_key::FlowKey;
use crate::queue::Queues;
use crate::slots::Slots;
use crate::snapshot::ImageError;
use crate::snapshot::document::{ProxiesImage, ProxyImage};
use crate::snapshot::error::require;

impl Relays {
    pub(crate) fn image(&self) -> ProxiesImage {
        let known = self.relays.iter().map(|(number, relay)| ProxyImage {
            number: number as u32,
            key: relay.key.image(),
            client: relay.said.client,
            called: relay.said.called,
            until: relay.until,
        });
        ProxiesImage {
            hash_keys: self.hash_keys,
            capacity: self.capacity as u32,
            known: known.collect(),
            vacant: self.relays.vacant().collect(),
            idle: self.idle.iter(IDLE).collect(),
        }
    }

    /// The proxies, where `of_flows` are the numbers of those of all flows. There must be room for
    /// those of so many flows.
    pub(crate) fn restored(
        image: &ProxiesImage,
        flows: usize,
        of_flows: impl Iterator<Item = u32>,
    ) -> Result<Self, ImageError> {
        let (capacity, used) = (image.capacity as usize, image.known.len() + image.vacant.len());
        let least = if flows == 0 { 0 } else { flows + WITHOUT_FLOWS };
        let most = MOST_FLOWS as usize + WITHOUT_FLOWS;
        let is_possible = (least..=most).contains(&capacity) && used <= capacity;
        require!(is_possible, "an impossible number of proxies");
        let relay = |proxy: &ProxyImage| Relay {
            key: FlowKey::restored(&proxy.key),
            said: Said { client: proxy.client, called: proxy.called },
            flows: 0,
            until: proxy.until,
        };
        let known = image.known.iter().map(|proxy| (proxy.number, relay(proxy)));
        let Some(relays) = Slots::restored(used, capacity, known, &image.vacant) else {
            return Err(ImageError::Broken("the number of a proxy is named twice, or never"));
        };
        let mut restored = Self {
            relays,
            index: HashTable::with_capacity(capacity * 2),
            idle: Queues::new(1, capacity),
            hash_keys: image.hash_keys,
            capacity,
        };
        restored.restore_index(image)?;
        for number in of_flows {
            match restored.relays.get_mut(number as usize) {
                Some(relay) => relay.flows += 1,
                None => return Err(ImageError::Broken("a flow without its proxy")),
            }
        }
        restored.restore_idle(image)?;
        Ok(restored)
    }

    fn restore_index(&mut self, image: &ProxiesImage) -> Result<(), ImageError> {
        for proxy in &image.known {
            let key = self.relays[proxy.number as usize].key;
            require!(key.client.proxy().is_none(), "a proxy behind a proxy");
            require!(self.find(&key).is_none(), "a proxy has two numbers");
            let Self { relays, index, hash_keys, .. } = self;
            let rehash = |&at: &u32| relays[at as usize].key.hash(*hash_keys);
            index.insert_unique(key.hash(*hash_keys), proxy.number, rehash);
        }
        Ok(())
    }

    fn restore_idle(&mut self, image: &ProxiesImage) -> Result<(), ImageError> {
        for &number in &image.idle {
            let is_idle = self.relays.get(number as usize).is_some_and(|relay| relay.flows == 0);
            let is_new = self.idle.queue_of(number as usize).is_none();
            require!(is_idle && is_new, "a proxy without flows that has some, or is there twice");
            self.idle.push(IDLE, number as usize);
        }
        let idle = self.relays.iter().filter(|(_, relay)| relay.flows == 0).count();
        require!(idle == image.idle.len(), "a proxy without flows is forgotten");
        Ok(())
    }
}
