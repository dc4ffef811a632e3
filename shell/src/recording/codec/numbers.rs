//! Numbers for what comes again and again. To look one up takes one line of cache, the same for all that
//! is of a client: a recording is written while datagrams wait, and tables of whole addresses cost several.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sys::cache;

/// How many lines of cache: a mebibyte.
const BUCKETS: usize = 1 << 14;

/// As many as fit into a line of cache.
const PLACES: usize = 5;

/// The marks that share a line of cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(64))]
struct Bucket {
    marks: [u64; PLACES],
    numbers: [u32; PLACES],
    /// The place whose mark is forgotten next.
    oldest: u32,
}

/// What is known by a number: as many as there is room for, those that came last.
#[derive(Debug)]
pub(super) struct Numbers {
    buckets: Vec<Bucket>,
    /// Nobody else knows them.
    keys: [u64; 2],
}

/// What has a number, in 64 bits that differ from those of all else: two are as good as never the same,
/// and nobody who does not know the keys can make them so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    sum: u64,
    /// The bucket that is looked at first: that of the client.
    bucket: u32,
}

/// A mark that is being made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marking {
    sum: u64,
    key: u64,
    bucket: u32,
}

impl Numbers {
    /// Nothing has a number yet.
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        let key = |number| {
            let mut hasher = random.build_hasher();
            hasher.write_u64(number);
            hasher.finish()
        };
        Self { buckets: Vec::new(), keys: [key(0), key(1) | 1] }
    }

    /// All that has a number is forgotten.
    pub(super) fn restart(&mut self) {
        self.buckets.fill(Bucket::default());
    }

    /// Begins a mark of something that is of a client, beside all else that is.
    #[inline]
    pub(super) fn mark(&self, client: &SocketAddr) -> Marking {
        let [sum, key] = self.keys;
        let marking = Marking { sum, key, bucket: 0 }.address(client);
        Marking { bucket: bucket_of(marking.sum), ..marking }
    }

    /// Fetches from memory what is known of a client.
    #[inline]
    pub(super) fn prefetch(&self, client: &SocketAddr) {
        let bucket = self.buckets.get(self.mark(client).bucket as usize);
        bucket.into_iter().for_each(cache::prefetch);
    }

    /// The number of what has this mark is to be asked for.
    #[inline]
    pub(super) fn expect(&mut self, mark: Mark) -> Mark {
        if self.buckets.is_empty() {
            self.buckets = vec![Bucket::default(); BUCKETS];
        }
        cache::prefetch(&self.buckets[mark.bucket as usize]);
        mark
    }

    /// The number of what has this mark, which has been [expected](Self::expect). If it has none it gets
    /// `next`.
    pub(super) fn number(&mut self, mark: Mark, next: u32) -> u32 {
        // No mark is that of a free place.
        let sum = mark.sum.max(1);
        let mut free = None;
        for bucket in [mark.bucket, bucket_of(sum)] {
            let Bucket { marks, numbers, .. } = &self.buckets[bucket as usize];
            if let Some(place) = marks.iter().position(|known| *known == sum) {
                return numbers[place];
            }
            let place = || marks.iter().position(|known| *known == 0);
            free = free.or_else(|| Some((bucket, place()?)));
        }
        let (bucket, place) = free.unwrap_or_else(|| self.make_room(bucket_of(sum)));
        let Bucket { marks, numbers, .. } = &mut self.buckets[bucket as usize];
        (marks[place], numbers[place]) = (sum, next);
        next
    }

    /// The place in a bucket that is used next when all are.
    fn make_room(&mut self, bucket: u32) -> (u32, usize) {
        let oldest = &mut self.buckets[bucket as usize].oldest;
        let place = *oldest as usize;
        *oldest = (*oldest + 1) % PLACES as u32;
        (bucket, place)
    }
}

/// Where there is room when there is none beside all that is of the client.
const fn bucket_of(sum: u64) -> u32 {
    (sum >> 32) as u32 % BUCKETS as u32
}

impl Marking {
    /// It is made.
    #[inline]
    pub(super) const fn end(self) -> Mark {
        Mark { sum: self.sum, bucket: self.bucket }
    }

    /// Takes in a word.
    #[inline]
    pub(super) const fn word(self, word: u64) -> Self {
        let product = (self.sum ^ word) as u128 * self.key as u128;
        Self { sum: product as u64 ^ (product >> 64) as u64, ..self }
    }

    /// Takes in an address.
    #[inline]
    pub(super) fn address(self, address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => self.v4(*address.ip(), address.port().into()),
            SocketAddr::V6(address) => {
                let zone = u64::from(address.scope_id());
                self.v6(address.ip(), u64::from(address.port()) << 32 | zone)
            }
        }
    }

    /// Takes in an address, and 48 bits that belong to it.
    #[inline]
    pub(super) fn ip(self, ip: &IpAddr, more: u64) -> Self {
        match ip {
            IpAddr::V4(ip) => self.v4(*ip, more),
            IpAddr::V6(ip) => self.v6(ip, more),
        }
    }

    #[inline]
    fn v4(self, ip: Ipv4Addr, more: u64) -> Self {
        self.word(4 << 60 | more).word(ip.to_bits().into())
    }

    #[inline]
    fn v6(self, ip: &Ipv6Addr, more: u64) -> Self {
        let bits = ip.to_bits();
        self.word(6 << 60 | more).word((bits >> 64) as u64).word(bits as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(numbers: &mut Numbers, mark: Marking, next: u32) -> u32 {
        let mark = numbers.expect(mark.end());
        numbers.number(mark, next)
    }

    #[test]
    fn what_has_a_number_keeps_it_until_counting_begins_anew() {
        let mut numbers = Numbers::new();
        let mut of = |address: &str, more, next| {
            let mark = numbers.mark(&address.parse().unwrap()).word(more);
            number(&mut numbers, mark, next)
        };
        let all = ["192.0.2.1:7", "192.0.2.1:8", "192.0.2.2:7", "[2001:db8::1]:7", "[fe80::1%3]:7"];
        for (next, address) in (0..).zip(all) {
            assert_eq!(of(address, 1, next), next);
        }
        for (known, address) in (0..).zip(all) {
            assert_eq!(of(address, 1, 99), known, "{address}");
        }
        assert_eq!(of(all[0], 2, 5), 5, "it is another");
        numbers.restart();
        let mark = numbers.mark(&all[3].parse().unwrap()).word(1);
        assert_eq!(number(&mut numbers, mark, 0), 0);
    }

    #[test]
    fn one_client_may_have_more_than_fits_where_it_is_looked_at_first() {
        let mut numbers = Numbers::new();
        let mut of = |upstream: u32, next| {
            let mark = numbers.mark(&"192.0.2.1:7".parse().unwrap()).word(upstream.into());
            number(&mut numbers, mark, next)
        };
        let upstreams = 20 * PLACES as u32;
        assert!((0..upstreams).all(|upstream| of(upstream, upstream) == upstream));
        assert!((0..upstreams).all(|upstream| of(upstream, u32::MAX) == upstream));
    }

    #[test]
    fn of_very_many_some_are_forgotten_and_none_is_taken_for_another() {
        let mut numbers = Numbers::new();
        let many = 2 * (BUCKETS * PLACES) as u32;
        let mut of = |ip: u32, next| {
            let mark = numbers.mark(&(Ipv4Addr::from(ip), 53).into());
            number(&mut numbers, mark, next)
        };
        assert!((0..many).all(|ip| of(ip, ip) == ip));
        let known = (0..many).rev().filter(|&ip| {
            let number = of(ip, u32::MAX);
            assert!(number == ip || number == u32::MAX);
            number == ip
        });
        assert!(known.count() > 0);
    }
}
