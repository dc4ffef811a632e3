//! `[admin]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::Admin;
use crate::error::Fault;
use crate::reader::{Item, Table};
use crate::value::{socket_address, text};

/// The longest path of a socket, in bytes: that of Linux, less the zero that ends it.
const SOCKET_PATH: usize = 107;

pub(super) fn admin(table: &Table<'_>) -> Option<Admin> {
    let socket = table.get("socket", socket).value;
    let http = table.get("http", http).value;
    Some(Admin { socket, http })
}

fn socket(item: &Item<'_>) -> Option<PathBuf> {
    let fits = |path: &&str| (1..=SOCKET_PATH).contains(&path.len()) && !path.contains('\0');
    text(item).filter(fits).map(PathBuf::from).or_else(|| {
        let allowed = "such as \"/run/flowgate/control.sock\"";
        item.refuse(format_args!("a path of 1 to {SOCKET_PATH} bytes, {allowed}"))
    })
}

fn http(item: &Item<'_>) -> Option<SocketAddr> {
    let Some(address) = text(item).and_then(socket_address) else {
        return item.refuse("an IP address and port, such as \"127.0.0.1:9464\"");
    };
    if !address.ip().is_loopback() {
        item.warn(Fault::OpenToOthers);
    }
    Some(address)
}
