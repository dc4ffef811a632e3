//! Network namespaces of the test's own, to have routes, links and packet sizes that this host
//! does not. They need root and `ip` (iproute2).

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::e2e::eventually;
use crate::skip::skip;

/// A network namespace, deleted when dropped. Loopback is up.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new namespace; `None`, with the reason printed, where there can be none.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("flowgate-{}-{number}", std::process::id());
        if let Err(error) = run("ip", &["netns", "add", &name]) {
            return skip(&format!("network namespaces need root and iproute2: {error}"));
        }
        let namespace = Self { name };
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// Two namespaces joined by a cable: `one` and `two` are its ends, with addresses 10.9.0.1 and
    /// 10.9.0.2, fd09::1 and fd09::2, fe80::1 and fe80::2.
    pub fn pair() -> Option<[Self; 2]> {
        let (one, two) = (Self::new()?, Self::new()?);
        one.ip(&format!("link add one type veth peer name two netns {}", two.name));
        for (namespace, end, number) in [(&one, "one", 1), (&two, "two", 2)] {
            namespace.ip(&format!("link set {end} addrgenmode none"));
            namespace.ip(&format!("link set {end} up"));
            namespace.ip(&format!("address add 10.9.0.{number}/24 dev {end}"));
            // Without duplicate address detection they can be used at once.
            namespace.ip(&format!("address add fd09::{number}/64 dev {end} nodad"));
            namespace.ip(&format!("address add fe80::{number}/64 dev {end} nodad"));
        }
        for (namespace, end) in [(&one, "one"), (&two, "two")] {
            // Until then the kernel throws away what is sent.
            eventually("the cable carries", || {
                let state = namespace.tool("ip", &format!("-brief link show {end}"));
                state.contains(" UP ").then_some(())
            });
        }
        Some([one, two])
    }

    /// A client at 10.8.0.2 and fd08::2, a balancer at 10.8.0.1 and fd08::1, and a backend behind it, joined
    /// as a [`pair`](Self::pair).
    pub fn between() -> Option<[Self; 3]> {
        let [balancer, backend] = Self::pair()?;
        let client = Self::new()?;
        balancer.ip(&format!("link add inner type veth peer name outer netns {}", client.name));
        for (namespace, end, number) in [(&balancer, "inner", 1), (&client, "outer", 2)] {
            namespace.ip(&format!("link set {end} addrgenmode none"));
            namespace.ip(&format!("link set {end} up"));
            namespace.ip(&format!("address add 10.8.0.{number}/24 dev {end}"));
            namespace.ip(&format!("address add fd08::{number}/64 dev {end} nodad"));
        }
        Some([client, balancer, backend])
    }

    /// Its name, for `ip`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside.
    ///
    /// # Panics
    ///
    /// When it fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        self.tool("ip", arguments);
    }

    /// Runs `tc` (traffic control) inside.
    ///
    /// # Panics
    ///
    /// When it fails.
    #[track_caller]
    pub fn tc(&self, arguments: &str) {
        self.tool("tc", arguments);
    }

    #[track_caller]
    fn tool(&self, tool: &str, arguments: &str) -> String {
        let arguments: Vec<_> =
            ["-n", &self.name].into_iter().chain(arguments.split(' ')).collect();
        run(tool, &arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Does something inside, on a thread of its own: the sockets and threads that it makes stay
    /// inside, also when they are handed out.
    ///
    /// # Panics
    ///
    /// When that panics, or the namespace cannot be entered.
    #[track_caller]
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        let thread = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
            act()
        };
        let outcome = std::thread::scope(|scope| scope.spawn(thread).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A router at .1 of four networks, with clients in 10.70.0, balancers in 10.71.1 and 10.71.2, and
/// backends in 10.72.0, each at .2; and the same of IPv6, in fd00, fd01, fd02 and fd03. The router
/// spreads flows over several next hops by addresses and ports.
pub struct Routed {
    /// The router.
    pub router: Namespace,
    /// Where clients are.
    pub client: Namespace,
    /// Where a balancer each is.
    pub balancers: [Namespace; 2],
    /// Where backends are.
    pub backends: Namespace,
}

impl Routed {
    /// New ones; `None`, with the reason printed, where there can be none.
    ///
    /// # Panics
    ///
    /// When they cannot be joined.
    pub fn new() -> Option<Self> {
        let (router, client) = (Namespace::new()?, Namespace::new()?);
        let (balancers, backends) = ([Namespace::new()?, Namespace::new()?], Namespace::new()?);
        let [one, two] = &balancers;
        let all =
            [(&client, "10.70.0"), (one, "10.71.1"), (two, "10.71.2"), (&backends, "10.72.0")];
        for (number, (namespace, network)) in all.into_iter().enumerate() {
            let end = format!("to{number}");
            router.ip(&format!("link add {end} type veth peer name eth netns {}", namespace.name));
            router.ip(&format!("address add {network}.1/24 dev {end}"));
            router.ip(&format!("link set {end} up"));
            namespace.ip(&format!("address add {network}.2/24 dev eth"));
            namespace.ip("link set eth up");
            namespace.ip(&format!("route add default via {network}.1"));
            router.ip(&format!("address add fd0{number}::1/64 dev {end} nodad"));
            namespace.ip(&format!("address add fd0{number}::2/64 dev eth nodad"));
            namespace.ip(&format!("route add default via fd0{number}::1"));
        }
        router.inside(|| {
            let set = |key: &str, value: &str| {
                std::fs::write(format!("/proc/sys/net/{key}"), value).expect("a setting");
            };
            set("ipv4/ip_forward", "1");
            set("ipv4/conf/all/rp_filter", "0");
            set("ipv6/conf/all/forwarding", "1");
            // By addresses and ports.
            set("ipv4/fib_multipath_hash_policy", "1");
        });
        Some(Self { router, client, balancers, backends })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "delete", &self.name]);
    }
}

/// Runs a tool and returns what it prints, or what it complains of.
fn run(tool: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(tool).args(arguments).output().map_err(|e| format!("{tool}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{tool} {}: {}", arguments.join(" "), said.trim()))
}
