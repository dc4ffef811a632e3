//! Which of several ways a client's datagrams go, by the network that it is in.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

/// Networks of clients, each list with where those in it go. The first that has a client decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes<T>(Vec<(Vec<IpNet>, T)>);

impl<T> Routes<T> {
    /// Routes in the order in which they are tried.
    pub const fn new(routes: Vec<(Vec<IpNet>, T)>) -> Self {
        Self(routes)
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a client goes; `None`: where all go that no route has.
    pub fn of(&self, client: IpAddr) -> Option<&T> {
        let client = client.to_canonical();
        let has = |(from, _): &&(Vec<IpNet>, T)| from.iter().any(|net| net.contains(&client));
        self.0.iter().find(has).map(|(_, to)| to)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(Vec<IpNet>, T)> {
        self.0.iter()
    }
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn the_first_route_that_has_a_client_decides() {
        let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
        let routes = Routes::new(vec![
            (nets(&["10.1.0.0/16", "2001:db8::/32"]), 'a'),
            (nets(&["10.0.0.0/8"]), 'b'),
            (nets(&["10.1.2.0/24"]), 'c'),
        ]);
        for (client, expected) in [
            ("10.1.2.3", Some('a')),
            ("10.2.0.1", Some('b')),
            ("::ffff:10.1.0.1", Some('a')),
            ("2001:db8::1", Some('a')),
            ("192.0.2.1", None),
            ("2001:db9::1", None),
        ] {
            assert_eq!(routes.of(client.parse().unwrap()).copied(), expected, "{client}");
        }
        assert_eq!(Routes::<u8>::default().of("10.0.0.1".parse().unwrap()), None);
    }
}
