//! Whether another program listens, by what the kernel says of its sockets: that its port cannot be bound
//! any more proves nothing, since anyone may have it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Child;

use crate::e2e::eventually;

/// Waits until a program has bound a UDP socket to `address`; false if it ends instead.
#[track_caller]
pub fn listens(child: &mut Child, address: SocketAddr) -> bool {
    eventually("it listens or ends", || match child.try_wait() {
        Ok(None) => has_bound(child.id(), address).then_some(true),
        _ => Some(false),
    })
}

/// Whether a process has a UDP socket that is bound to `address`, and no other.
fn has_bound(process: u32, address: SocketAddr) -> bool {
    let process = Path::new("/proc").join(process.to_string());
    let table = if address.is_ipv4() { "net/udp" } else { "net/udp6" };
    let table = std::fs::read_to_string(process.join(table)).unwrap_or_default();
    let address = hexadecimal(address);
    // Where it is bound is the second column, and the inode the tenth.
    let inodes = table.lines().filter_map(|line| {
        let mut columns = line.split_whitespace();
        (columns.nth(1)? == address).then(|| columns.nth(7))?
    });
    let bound: Vec<_> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
    let open = std::fs::read_dir(process.join("fd")).into_iter().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .any(|link| bound.iter().any(|socket| link.as_os_str() == socket.as_str()))
}

/// An address as the kernel writes it: words of the host's byte order.
fn hexadecimal(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (words, _) = octets.as_chunks::<4>();
    let words = words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_process_has_bound_what_its_own_sockets_are_bound_to() {
        let parent = std::os::unix::process::parent_id();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = UdpSocket::bind(address) else { continue };
            let address = socket.local_addr().expect("an address");
            assert!(has_bound(std::process::id(), address), "{address}");
            assert!(!has_bound(parent, address), "{address} is not the parent's");
            assert!(!has_bound(std::process::id(), (address.ip(), 9).into()));
        }
    }
}
