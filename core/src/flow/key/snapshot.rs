//! Keys as plain data.

use super::{ClientKey, FlowKey, Way, canonical, mapped};
use crate::snapshot::parts::{KeyImage, WayImage};

impl FlowKey {
    pub(crate) fn image(&self) -> KeyImage {
        let ClientKey { scope, port, way, .. } = self.client;
        let way = match way {
            Way::Direct => WayImage::Direct { scope },
            Way::ToLocal => WayImage::ToLocal { scope, ip: canonical(self.local) },
            Way::Relayed => WayImage::Relayed { proxy: scope },
        };
        KeyImage { ip: canonical(self.client.ip_bits()), port, way }
    }

    pub(crate) fn restored(image: &KeyImage) -> Self {
        let (way, scope, local) = match image.way {
            WayImage::Direct { scope } => (Way::Direct, scope, 0),
            WayImage::ToLocal { scope, ip } => (Way::ToLocal, scope, mapped(ip)),
            WayImage::Relayed { proxy } => (Way::Relayed, proxy, 0),
        };
        let ip = mapped(image.ip);
        let ip = [(ip >> 64) as u64, ip as u64];
        Self { client: ClientKey { ip, scope, port: image.port, way }, local }
    }
}
