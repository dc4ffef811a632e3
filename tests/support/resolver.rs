//! Real DNS servers, and `dig` to ask them.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use crate::e2e::{eventually, own_address};
use crate::skip::skip;

/// A `dnsmasq`; stopped when dropped.
pub struct Resolver {
    child: Child,
    address: SocketAddr,
}

impl Resolver {
    /// A server that knows these names, and answers; `None`, with the reason printed, where it or
    /// `dig` is not installed.
    pub fn start(names: &[(String, Ipv4Addr)]) -> Option<Self> {
        let records = names.iter().map(|(name, ip)| format!("--address=/{name}/{ip}"));
        let resolver = dnsmasq(records)?;
        let (name, ip) = names.first().expect("a name");
        let is_there =
            eventually("the resolver answers", || match dig(resolver.address, &[name]) {
                Some(said) => (said == [ip.to_string()]).then_some(true),
                None => Some(false),
            });
        is_there.then_some(resolver)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A server with these records, as options of dnsmasq's, which may not listen yet; `None`, with the
/// reason printed, where it is not installed.
pub fn dnsmasq(records: impl Iterator<Item = String>) -> Option<Resolver> {
    // It takes no port 0.
    let address = own_address();
    let child = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user="])
        .args(["--bind-interfaces", "--no-resolv", "--no-hosts"])
        .arg(format!("--listen-address={}", address.ip()))
        .arg(format!("--port={}", address.port()))
        .args(records)
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Some(Resolver { child, address }),
        Err(error) => skip(&format!("dnsmasq (Debian: dnsmasq-base): {error}")),
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that `dig` prints about some names; `None`, with the reason printed, where it is not
/// installed.
pub fn dig(server: SocketAddr, names: &[impl AsRef<str>]) -> Option<Vec<String>> {
    let output = Command::new("dig")
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string()])
        .args(["+short", "+time=5", "+tries=3"])
        .args(names.iter().map(AsRef::as_ref))
        .output();
    match output {
        Ok(output) => {
            Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
        }
        Err(error) => skip(&format!("dig (Debian: bind9-dnsutils): {error}")),
    }
}
