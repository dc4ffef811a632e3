//! What is known about one name: what a lookup's outcome means for it. No input, no output, no
//! clock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A name is looked up again no sooner than this.
pub const MIN_TTL: Duration = Duration::from_secs(1);

/// A name is looked up again no later than this.
pub const MAX_TTL: Duration = Duration::from_secs(300);

/// The most addresses that one name gives: the least ones, if it has more.
pub const MAX_ADDRESSES: usize = 256;

/// How long it takes at most until a lookup that failed is tried again.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// What came of looking a name up.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Of looking for IPv4 addresses.
    pub v4: Family,
    /// Of looking for IPv6 addresses.
    pub v6: Family,
}

/// What came of looking for the addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// There are some, good for this long.
    Found { addresses: Vec<IpAddr>, ttl: Duration },
    /// The name has none.
    Nothing,
    /// The name does not exist (`NXDOMAIN`).
    NoName,
    /// It is not known whether there are any.
    Failed(String),
}

/// What is known about one name.
#[derive(Debug, Default)]
pub(super) struct NameState {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    /// What the latest answers left out, and until when it is kept.
    held: BTreeMap<IpAddr, Duration>,
    failures: u32,
    trouble: Option<Trouble>,
    /// The same in words, as they were last.
    why: Option<String>,
}

/// Why a name could not be resolved. The same trouble is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    NoName,
    Nothing,
    Failed,
    /// One family failed, the other did not.
    Partly,
}

/// What follows from an outcome.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The addresses, if they are others than before.
    pub changed: Option<Vec<IpAddr>>,
    /// What an operator wants to know.
    pub event: Option<News>,
    /// When to look it up again.
    pub wait: Duration,
}

/// What an operator wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The name cannot be resolved; the reason.
    Trouble(String),
    /// It can be again.
    Recovered,
}

impl NameState {
    /// The last good answer, sorted; empty if there has been none.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = self.all();
        addresses.truncate(MAX_ADDRESSES);
        addresses
    }

    /// How many addresses of the last good answer are not used, since there are too many.
    pub(super) fn left_out(&self) -> usize {
        self.all().len().saturating_sub(MAX_ADDRESSES)
    }

    fn all(&self) -> Vec<IpAddr> {
        let held: Vec<IpAddr> = self.held.keys().copied().collect();
        let mut addresses = [self.v4.as_slice(), self.v6.as_slice(), &held].concat();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Why the latest lookup failed, if it did.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Takes note of what came of a lookup at `now`. Addresses that an answer leaves out are kept for
    /// `hold`.
    pub(super) fn learn(
        &mut self,
        Outcome { v4, v6 }: Outcome,
        now: Duration,
        hold: Duration,
    ) -> Step {
        let before = self.addresses();
        let all_before = self.all();
        let trouble = trouble(&v4, &v6);
        // Unless some address was found, nothing that was known is given up.
        let mut wait = MAX_TTL;
        if is_found(&v4) || is_found(&v6) {
            for (family, kept) in [(v4, &mut self.v4), (v6, &mut self.v6)] {
                match family {
                    Family::Found { addresses, ttl } => {
                        *kept = addresses;
                        wait = wait.min(ttl.max(MIN_TTL));
                    }
                    Family::Nothing | Family::NoName => kept.clear(),
                    Family::Failed(_) => {}
                }
            }
            self.hold(&all_before, now, hold);
            let next_end = self.held.values().min();
            wait = next_end.map_or(wait, |end| wait.min((*end - now).max(MIN_TTL)));
        }
        if trouble.is_some() {
            self.failures = self.failures.saturating_add(1);
            wait = wait.min(retry_after(self.failures));
        } else {
            self.failures = 0;
        }
        let addresses = self.addresses();
        let changed = (addresses != before).then_some(addresses);
        Step { changed, event: self.event(trouble), wait }
    }

    /// Keeps what an answer has left out, unless it has nothing in common with what was known, and
    /// forgets what was kept long enough.
    fn hold(&mut self, before: &[IpAddr], now: Duration, hold: Duration) {
        let is_given = |ip: &IpAddr| self.v4.contains(ip) || self.v6.contains(ip);
        if !before.iter().any(is_given) {
            self.held.clear();
            return;
        }
        for ip in before.iter().filter(|ip| !is_given(ip)) {
            self.held.entry(*ip).or_insert(now + hold);
        }
        self.held.retain(|ip, until| {
            let is_given = self.v4.contains(ip) || self.v6.contains(ip);
            // Also where less is held now than was then.
            *until = (*until).min(now + hold);
            *until > now && !is_given
        });
    }

    /// What there is to tell, once for each change.
    fn event(&mut self, now: Option<(Trouble, String)>) -> Option<News> {
        let before = self.trouble;
        self.trouble = now.as_ref().map(|(trouble, _)| *trouble);
        self.why = now.as_ref().map(|(_, why)| why.clone());
        match now {
            Some((trouble, why)) if before != Some(trouble) => Some(News::Trouble(why)),
            None if before.is_some() => Some(News::Recovered),
            _ => None,
        }
    }
}

const fn is_found(family: &Family) -> bool {
    matches!(family, Family::Found { .. })
}

/// What is wrong with an outcome, and how to say it.
fn trouble(v4: &Family, v6: &Family) -> Option<(Trouble, String)> {
    let is_partial = is_found(v4) || is_found(v6);
    match (v4, v6) {
        (Family::Failed(why), _) if is_partial => {
            Some((Trouble::Partly, format!("of its IPv4 addresses nothing is known: {why}")))
        }
        (_, Family::Failed(why)) if is_partial => {
            Some((Trouble::Partly, format!("of its IPv6 addresses nothing is known: {why}")))
        }
        _ if is_partial => None,
        (Family::Failed(why), _) | (_, Family::Failed(why)) => Some((Trouble::Failed, why.clone())),
        (Family::NoName, _) | (_, Family::NoName) => {
            Some((Trouble::NoName, "it does not exist (NXDOMAIN)".into()))
        }
        _ => Some((Trouble::Nothing, "it has no addresses".into())),
    }
}

/// How long to wait after this many failures in a row: 1 s, 2 s, 4 s, ...
pub(crate) fn retry_after(failures: u32) -> Duration {
    let seconds = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(MAX_RETRY_DELAY)
}

#[cfg(test)]
mod tests;
