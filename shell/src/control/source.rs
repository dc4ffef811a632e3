//! Whether this host can have the sources that clusters name, found out before anything relies on
//! it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use flowgate_config::{Cluster, Config, Member, Target};
use flowgate_core::config::{Source, SourceAddress};
use socket2::{Domain, Type};

use crate::sys::fd::AsFd;
use crate::sys::{sockopt, udp};

/// A source that no socket can have.
#[derive(Debug, thiserror::Error)]
#[error("cluster {cluster:?}: cannot send from source {written:?}: {error}; {advice}")]
pub struct SourceError {
    cluster: String,
    written: String,
    error: io::Error,
    advice: &'static str,
}

/// Tries out the sources of all clusters that serve a listener or mirror one that does.
///
/// # Errors
///
/// When an address is not this host's, when a range begins with a port that needs a capability, and
/// when `"client"` does.
pub fn check(config: &Config) -> Result<(), SourceError> {
    config.used_clusters().try_for_each(|cluster| check_cluster(cluster))
}

fn check_cluster(cluster: &Cluster) -> Result<(), SourceError> {
    let source = &cluster.policy.source;
    let refused = |written: String, error: io::Error| SourceError {
        cluster: cluster.name.clone(),
        written,
        advice: advice(source, cluster.policy.mode.has_flows(), &error),
        error,
    };
    let attempt = match source {
        Source::Any => return Ok(()),
        Source::Local(addresses) => {
            return addresses.iter().try_for_each(|&address| {
                let lowest = address.ports.map_or(0, |ports| ports.first);
                let ips = address.ip.map_or_else(|| wildcards(cluster), |ip| vec![ip]);
                let attempt = ips.into_iter().try_for_each(|ip| try_address((ip, lowest).into()));
                attempt.map_err(|error| refused(describe_address(address), error))
            });
        }
        Source::Client if cluster.policy.mode.has_flows() => {
            wildcards(cluster).into_iter().try_for_each(try_transparent)
        }
        Source::Client => {
            wildcards(cluster).into_iter().try_for_each(|ip| udp::raw(ip.is_ipv6()).map(drop))
        }
    };
    attempt.map_err(|error| refused(describe(source), error))
}

/// How many flows at once the ports of a cluster's source are enough for: each serves one flow for
/// each backend.
pub fn ports(cluster: &Cluster) -> u64 {
    let Source::Local(addresses) = &cluster.policy.source else { return u64::MAX };
    let of = |&address: &SourceAddress| {
        address.ports.map(|ports| u64::from(ports.len()) * backends_from(cluster, address))
    };
    // One address without a range has more than are counted.
    addresses.iter().map(of).sum::<Option<u64>>().unwrap_or(u64::MAX)
}

/// How many backends are reached from an address: one at least, where they are found out later.
fn backends_from(cluster: &Cluster, address: SourceAddress) -> u64 {
    let is_reached = |member: &&Member| {
        let may_be = |v6| member.may_be_of_family(v6) && address.is_of_family(v6);
        may_be(false) || may_be(true)
    };
    match cluster.members.len() {
        0 => 1,
        _ => cluster.members.iter().filter(is_reached).count() as u64,
    }
}

/// How many sockets can have a port where the kernel chooses those of a cluster, as far as it says how
/// many there are. Some are left to others: all programs and listeners share them.
pub fn local_ports(cluster: &Cluster) -> u64 {
    let addresses = match &cluster.policy.source {
        // Clients have chosen them.
        Source::Client => return u64::MAX,
        Source::Any => wildcards(cluster).len().max(1),
        source if source.has_port_range() => return u64::MAX,
        Source::Local(addresses) => {
            addresses.iter().filter(|&&address| backends_from(cluster, address) > 0).count()
        }
    };
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let ports = range.ok().and_then(|range| ports_in(&range)).unwrap_or(u64::MAX);
    (ports - ports / 64).saturating_mul(addresses as u64)
}

/// How many ports a range has, as Linux writes it.
fn ports_in(range: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(|end| end.parse::<u64>().ok());
    let (first, last) = (ends.next()??, ends.next()??);
    Some(last.checked_sub(first)? + 1)
}

/// A source as it is written in a configuration.
pub fn describe(source: &Source) -> String {
    match source {
        Source::Any => "any".to_owned(),
        Source::Client => "client".to_owned(),
        Source::Local(addresses) => {
            let each = addresses.iter().map(|&address| describe_address(address));
            each.collect::<Vec<_>>().join(" or ")
        }
    }
}

fn describe_address(SourceAddress { ip, ports }: SourceAddress) -> String {
    let ip = ip.unwrap_or(udp::unspecified(false));
    match ports {
        None => ip.to_string(),
        Some(ports) => format!("{}-{}", SocketAddr::new(ip, ports.first), ports.last),
    }
}

/// The unspecified address of each family that the cluster's backends may have.
fn wildcards(cluster: &Cluster) -> Vec<IpAddr> {
    let may_have = |v6: bool| {
        cluster.members.iter().any(|member| match member.target {
            Target::Address(address) => address.is_ipv6() == v6,
            // Where only names are known, one family stands for both: some hosts lack IPv6.
            Target::Name { .. } => !v6,
        })
    };
    [false, true].into_iter().filter(|&v6| may_have(v6)).map(udp::unspecified).collect()
}

fn try_address(address: SocketAddr) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match socket.bind(&address.into()) {
        // Others may have the port for now; a flow takes one that is free.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
        outcome => outcome,
    }
}

fn try_transparent(family: IpAddr) -> io::Result<()> {
    let domain = Domain::for_address(SocketAddr::new(family, 0));
    let socket = socket2::Socket::new(domain, Type::DGRAM, None)?;
    sockopt::set_transparent(socket.as_fd(), family.is_ipv6())
}

fn advice(source: &Source, has_flows: bool, error: &io::Error) -> &'static str {
    match (source, error.kind()) {
        (Source::Client, io::ErrorKind::PermissionDenied) if !has_flows => {
            "it needs CAP_NET_RAW: run as root, or for systemd add AmbientCapabilities=CAP_NET_RAW \
             and CapabilityBoundingSet=CAP_NET_RAW"
        }
        (Source::Client, io::ErrorKind::PermissionDenied) => {
            "it needs CAP_NET_ADMIN: run as root, or for systemd add \
             AmbientCapabilities=CAP_NET_ADMIN and CapabilityBoundingSet=CAP_NET_ADMIN"
        }
        (_, io::ErrorKind::AddrNotAvailable) => {
            "the address is not one of this host: see `ip address`, or change cluster.NAME.source"
        }
        (_, io::ErrorKind::PermissionDenied) => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE"
        }
        _ => "change cluster.NAME.source",
    }
}

#[cfg(test)]
mod tests {
    use super::ports_in;

    #[test]
    fn the_range_of_local_ports_is_read_as_linux_writes_it() {
        assert_eq!(ports_in("32768\t60999\n"), Some(28_232));
        assert_eq!(ports_in("1024 1024"), Some(1));
        assert!(["", "1024", "9 8", "one two"].iter().all(|text| ports_in(text).is_none()));
    }
}
