//! What someone who looks wants to see, and in which order.

use ratatui::crossterm::event::KeyCode;

use super::stretch::Stretch;
use crate::admin::status::{BackendState, BackendStatus, ClusterStatus};

/// What is shown below the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Screen {
    /// Listeners and backends.
    #[default]
    Figures,
    /// What happened last.
    Events,
    /// What the keys do.
    Help,
}

/// The order of a cluster's backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Those that are out of service first, and the clusters that have some.
    #[default]
    Trouble,
    /// Those that are sent most first.
    Sent,
    /// Those with most flows first.
    Flows,
    /// That of the configuration.
    Configuration,
}

impl Sort {
    /// Its name.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Trouble => "trouble",
            Self::Sent => "sent",
            Self::Flows => "flows",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Trouble => Self::Sent,
            Self::Sent => Self::Flows,
            Self::Flows => Self::Configuration,
            Self::Configuration => Self::Trouble,
        }
    }
}

/// What is to be shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) screen: Screen,
    pub(super) sort: Sort,
    /// Of the backends only those are shown that have this in their address, name, cluster or state.
    pub(super) filter: String,
    /// Whether the filter is being typed.
    pub(super) is_typing: bool,
}

impl Options {
    /// Takes a key, if it is one of these. Says whether it was.
    pub(super) fn handle(&mut self, key: KeyCode) -> bool {
        if self.is_typing {
            match key {
                KeyCode::Enter => self.is_typing = false,
                KeyCode::Esc => (self.is_typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) => self.filter.extend(c.to_lowercase()),
                _ => {}
            }
            return true;
        }
        match key {
            KeyCode::Char('/') => (self.is_typing, self.screen) = (true, Screen::Figures),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('e') => self.switch(Screen::Events),
            KeyCode::Char('?' | 'h') => self.switch(Screen::Help),
            KeyCode::Esc if self.screen != Screen::Figures => self.screen = Screen::Figures,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            _ => return false,
        }
        true
    }

    /// To another screen, and back by the same key.
    fn switch(&mut self, screen: Screen) {
        self.screen = if self.screen == screen { Screen::Figures } else { screen };
    }

    /// The clusters, in order.
    pub(super) fn clusters<'a>(&self, all: &'a [ClusterStatus]) -> Vec<&'a ClusterStatus> {
        let mut clusters: Vec<_> = all.iter().collect();
        if self.sort == Sort::Trouble {
            let is_well =
                |cluster: &&ClusterStatus| cluster.backends.iter().all(|b| !b.state.is_trouble());
            clusters.sort_by_key(is_well);
        }
        clusters
    }

    /// The backends of a cluster that are to be shown, in order.
    pub(super) fn backends<'a>(
        &self,
        stretch: &Stretch<'_>,
        cluster: &'a ClusterStatus,
    ) -> Vec<&'a BackendStatus> {
        let mut shown: Vec<_> =
            cluster.backends.iter().filter(|backend| self.fits(cluster, backend)).collect();
        match self.sort {
            Sort::Configuration => {}
            Sort::Trouble => shown.sort_by_key(|backend| urgency(backend.state)),
            Sort::Sent => shown.sort_by_cached_key(|backend| {
                u64::MAX - stretch.of_backend(cluster, backend, |backend| backend.datagrams_to)
            }),
            Sort::Flows => shown.sort_by_key(|backend| u64::MAX - backend.flows_active),
        }
        shown
    }

    fn fits(&self, cluster: &ClusterStatus, backend: &BackendStatus) -> bool {
        let name = backend.name.as_deref().unwrap_or_default();
        let state = backend.state.as_str();
        let text = format!("{} {} {name} {state}", cluster.name, backend.address).to_lowercase();
        self.filter.split_whitespace().all(|word| text.contains(word))
    }
}

/// The smaller, the sooner someone should look.
const fn urgency(state: BackendState) -> u8 {
    match state {
        BackendState::Down => 0,
        BackendState::Ejected => 1,
        BackendState::Draining => 2,
        BackendState::Unchecked => 3,
        BackendState::Up => 4,
    }
}
