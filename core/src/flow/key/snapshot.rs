//! Keys as plain data.

use super::{ClientKey, FlowKey, Way, canonical, mapped};
use crate::snapshot::parts::{KeySnapshot, PathSnapshot};

impl FlowKey {
    pub(crate) fn snapshot(&self) -> KeySnapshot {
        let ClientKey { scope, port, way, asks, .. } = self.client;
        let way = match way {
            Way::Direct => PathSnapshot::Direct { scope },
            Way::ToLocal => PathSnapshot::ToLocal { scope, ip: canonical(self.local) },
            Way::Relayed => PathSnapshot::Relayed { proxy: scope },
        };
        KeySnapshot {
            ip: canonical(self.client.ip_bits()),
            port,
            way,
            transaction: asks.then_some(self.transaction),
        }
    }

    pub(crate) fn restored(snapshot: &KeySnapshot) -> Self {
        let (way, scope, local) = match snapshot.way {
            PathSnapshot::Direct { scope } => (Way::Direct, scope, 0),
            PathSnapshot::ToLocal { scope, ip } => (Way::ToLocal, scope, mapped(ip)),
            PathSnapshot::Relayed { proxy } => (Way::Relayed, proxy, 0),
        };
        let ip = mapped(snapshot.ip);
        let ip = [(ip >> 64) as u64, ip as u64];
        let asks = snapshot.transaction.is_some();
        let client = ClientKey { ip, scope, port: snapshot.port, way, asks };
        Self { client, local, transaction: snapshot.transaction.unwrap_or(0) }
    }
}
