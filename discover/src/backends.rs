//! A set of backends, and how a file says it.

use std::collections::BTreeMap;

use serde::Serialize;

/// What is known of one backend, but for its address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Its share of new flows, compared with the others'.
    pub weight: u32,
    /// It gets flows only while no other backend can take them.
    pub backup: bool,
    /// It keeps the flows that it has and gets no new ones.
    pub drain: bool,
    /// What connection ids name it by: hexadecimal digits.
    pub server_id: Option<String>,
}

impl Default for Backend {
    fn default() -> Self {
        Self { weight: 1, backup: false, drain: false, server_id: None }
    }
}

/// Backends by address, which is `10.0.0.1:53`, `[2001:db8::1]:53` or `name.example:53`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends(BTreeMap<String, Backend>);

impl Backends {
    /// Adds one. Where it is there already, it stays as it was if it takes new flows.
    pub fn insert(&mut self, address: impl Into<String>, backend: Backend) {
        let known = self.0.entry(address.into()).or_insert_with(|| backend.clone());
        if known.drain && !backend.drain {
            *known = backend;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, sorted by address.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Backend)> {
        self.0.iter().map(|(address, backend)| (address.as_str(), backend))
    }

    /// If every one of them drains, none does: someone has to take new flows.
    ///
    /// Where a whole service ends, those that still serve are better than nothing.
    pub fn without_draining_all(mut self) -> Self {
        if self.0.values().all(|backend| backend.drain) {
            self.0.values_mut().for_each(|backend| backend.drain = false);
        }
        self
    }

    /// As a file says it: Prometheus' format of service discovery by files. Equal sets give equal
    /// text.
    pub fn to_json(&self) -> String {
        let mut groups = BTreeMap::<&Backend, Vec<&str>>::new();
        for (address, backend) in self.iter() {
            groups.entry(backend).or_default().push(address);
        }
        let groups: Vec<_> = groups
            .into_iter()
            .map(|(backend, targets)| Group { targets, labels: labels(backend) })
            .collect();
        let mut text = serde_json::to_string_pretty(&groups).unwrap_or_else(|_| "[]".to_owned());
        text.push('\n');
        text
    }
}

#[derive(Serialize)]
struct Group<'a> {
    targets: Vec<&'a str>,
    labels: BTreeMap<&'static str, String>,
}

/// The labels of a backend: what is as usual is not said.
fn labels(backend: &Backend) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::new();
    if backend.weight != 1 {
        labels.insert("weight", backend.weight.to_string());
    }
    if backend.backup {
        labels.insert("backup", "true".to_owned());
    }
    if backend.drain {
        labels.insert("drain", "true".to_owned());
    }
    if let Some(id) = &backend.server_id {
        labels.insert("server_id", id.clone());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draining() -> Backend {
        Backend { drain: true, ..Backend::default() }
    }

    #[test]
    fn who_is_named_twice_takes_new_flows_if_either_says_so() {
        let mut backends = Backends::default();
        backends.insert("10.0.0.1:53", draining());
        backends.insert("10.0.0.1:53", Backend::default());
        backends.insert("10.0.0.1:53", draining());
        assert_eq!(backends.iter().collect::<Vec<_>>(), [("10.0.0.1:53", &Backend::default())]);
    }

    #[test]
    fn backends_that_are_alike_share_a_group() {
        let mut backends = Backends::default();
        backends.insert("10.0.0.2:53", Backend::default());
        backends.insert("10.0.0.1:53", Backend::default());
        let id = Some("0a0b".to_owned());
        let other = Backend { weight: 3, backup: true, server_id: id, ..Backend::default() };
        backends.insert("[2001:db8::1]:53", other);
        let read: serde_json::Value = serde_json::from_str(&backends.to_json()).unwrap();
        assert_eq!(
            read,
            serde_json::json!([
                { "targets": ["10.0.0.1:53", "10.0.0.2:53"], "labels": {} },
                {
                    "targets": ["[2001:db8::1]:53"],
                    "labels": { "weight": "3", "backup": "true", "server_id": "0a0b" },
                },
            ])
        );
    }

    #[test]
    fn a_service_of_which_all_end_still_takes_new_flows() {
        let mut backends = Backends::default();
        backends.insert("10.0.0.1:53", draining());
        let ending = backends.clone().without_draining_all();
        assert!(ending.iter().all(|(_, backend)| !backend.drain));

        backends.insert("10.0.0.2:53", Backend::default());
        assert_eq!(backends.clone().without_draining_all(), backends);
    }
}
