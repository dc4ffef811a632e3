//! Where the system says how names are looked up.

use hickory_resolver::config::{ResolverConfig, ResolverOpts};

/// The file of names and addresses.
pub(super) fn hosts_file() -> String {
    if cfg!(windows) {
        let windows = std::env::var("SystemRoot").unwrap_or_else(|_| r"C:\Windows".to_owned());
        format!(r"{windows}\System32\drivers\etc\hosts")
    } else {
        "/etc/hosts".to_owned()
    }
}

/// The file that changes when the DNS servers do, where there is one.
pub(super) const RESOLV_CONF: Option<&str> =
    if cfg!(windows) { None } else { Some("/etc/resolv.conf") };

/// The DNS servers, and how they are asked. `text` is what the file says.
#[cfg(not(any(windows, target_vendor = "apple")))]
pub(super) fn servers(text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), String> {
    let parsed = hickory_resolver::system_conf::parse_resolv_conf(text);
    parsed.map_err(|error| format!("/etc/resolv.conf: {error}"))
}

/// The DNS servers, and how they are asked. What the file says is only for those who cannot ask the
/// system.
#[cfg(any(windows, target_vendor = "apple"))]
pub(super) fn servers(_text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), String> {
    let read = hickory_resolver::system_conf::read_system_conf();
    read.map_err(|error| format!("the system does not tell its DNS servers: {error}"))
}
