//! Keys as plain data.

use super::{ClientKey, FlowKey, Path, canonical, mapped};
use crate::snapshot::parts::{KeySnapshot, PathSnapshot};

impl FlowKey {
    pub(crate) fn snapshot(&self) -> KeySnapshot {
        let ClientKey { scope, port, path, asks, .. } = self.client;
        let path = match path {
            Path::Direct => PathSnapshot::Direct { scope },
            Path::ToLocal => PathSnapshot::ToLocal { scope, ip: canonical(self.local) },
            Path::Proxied => PathSnapshot::Proxied { proxy: scope },
        };
        KeySnapshot {
            ip: canonical(self.client.ip_bits()),
            port,
            path,
            transaction: asks.then_some(self.transaction),
        }
    }

    pub(crate) fn restored(snapshot: &KeySnapshot) -> Self {
        let (path, scope, local) = match snapshot.path {
            PathSnapshot::Direct { scope } => (Path::Direct, scope, 0),
            PathSnapshot::ToLocal { scope, ip } => (Path::ToLocal, scope, mapped(ip)),
            PathSnapshot::Proxied { proxy } => (Path::Proxied, proxy, 0),
        };
        let ip = mapped(snapshot.ip);
        let ip = [(ip >> 64) as u64, ip as u64];
        let asks = snapshot.transaction.is_some();
        let client = ClientKey { ip, scope, port: snapshot.port, path, asks };
        Self { client, local, transaction: snapshot.transaction.unwrap_or(0) }
    }
}
