//! What the backends of clusters with direct return have to set up: they answer the address that they see,
//! which are the clients, and those know the balancer's address only.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use flowgate_config::{Cluster, Listener};

use super::{Failure, addresses_of, put};
use crate::admin::escape::escaped;

/// Prints the rules, for each backend those that are its.
pub(in crate::cli) fn backend_setup(path: &Path) -> Result<(), Failure> {
    let config = flowgate_config::load(path)?;
    let direct: Vec<_> = config.listeners.iter().filter(|l| l.cluster.is_direct).collect();
    if direct.is_empty() {
        return Err(Failure(format!(
            "{}: no listener has a cluster with return = \"direct\", and no backend has anything to \
             set up",
            path.display()
        )));
    }
    let mut text = String::new();
    for listener in direct {
        for backend in backends(&listener.cluster) {
            // Writing to a string does not fail.
            let _ = write!(text, "{}", rules(listener, backend, own_address(backend)));
        }
    }
    put(&text)
}

fn backends(cluster: &Cluster) -> BTreeSet<SocketAddr> {
    cluster.backends(addresses_of).iter().map(|backend| backend.address).collect()
}

/// The address of this host's that a backend sees as the sender of probes.
fn own_address(backend: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if backend.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().ok()?;
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(backend).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// What one backend behind one listener has to set up.
fn rules(listener: &Listener, backend: SocketAddr, own: Option<IpAddr>) -> String {
    let called = listener.address;
    let family = if backend.is_ipv6() { "ip6" } else { "ip" };
    let address = match called.ip() {
        ip if ip.is_unspecified() => "ADDRESS".to_owned(),
        ip => ip.to_string(),
    };
    let mut text = format!(
        "# on {}, for cluster {:?} behind listener {:?}\n",
        backend.ip(),
        escaped(&listener.cluster.name).to_string(),
        escaped(&listener.name).to_string(),
    );
    if called.ip().is_unspecified() {
        text += "# in place of ADDRESS put the address that clients call\n";
    }
    let probed = listener.cluster.health.is_some();
    let except = match own.filter(|_| probed) {
        Some(own) => {
            text +=
                "# the answers to probes stay as they are: add the addresses of other balancers\n";
            format!("{family} daddr != {{ {own} }} ")
        }
        None => String::new(),
    };
    let name = format!("flowgate_{}_{}", backend.port(), called.port());
    let (ip, from, to) = (backend.ip(), backend.port(), called.port());
    text + &format!(
        "table {family} {name} {{\n  chain answers {{\n    type filter hook output priority raw\n    \
         {family} saddr {ip} udp sport {from} {except}notrack {family} saddr set {address} udp sport \
         set {to}\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str, backend: &str, more: &str) -> Listener {
        let text = format!(
            "[[listener]]\nname = \"dns\"\naddress = {address:?}\ncluster = \"web\"\n[cluster.web]\n\
             return = \"direct\"\nbackends = [{backend:?}]\n{more}"
        );
        flowgate_config::parse(&text, "f").unwrap().listeners.remove(0)
    }

    #[test]
    fn answers_are_made_to_leave_from_the_address_that_clients_called() {
        let backend = "10.0.0.1:5353".parse().unwrap();
        let listener = listener("192.0.2.53:53", "10.0.0.1:5353", "");
        assert_eq!(
            rules(&listener, backend, Some("10.0.0.9".parse().unwrap())),
            "# on 10.0.0.1, for cluster \"web\" behind listener \"dns\"\n\
             table ip flowgate_5353_53 {\n  chain answers {\n    type filter hook output priority raw\n    \
             ip saddr 10.0.0.1 udp sport 5353 notrack ip saddr set 192.0.2.53 udp sport set 53\n  }\n}\n"
        );
    }

    #[test]
    fn answers_to_probes_and_unknown_addresses_are_said() {
        let backend = "[2001:db8::1]:53".parse().unwrap();
        let health = "health = { probe = \"udp\", send = \"dns\" }";
        let listener = listener("[::]:53", "[2001:db8::1]:53", health);
        let text = rules(&listener, backend, Some("2001:db8::9".parse().unwrap()));
        assert!(text.contains("put the address that clients call"), "{text}");
        let rule = "ip6 saddr 2001:db8::1 udp sport 53 ip6 daddr != { 2001:db8::9 } notrack ip6 saddr \
                    set ADDRESS udp sport set 53";
        assert!(text.contains(rule), "{text}");
    }
}
