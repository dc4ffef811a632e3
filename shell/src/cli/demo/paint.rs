//! The few colours of the demo.

use anstyle::{AnsiColor, Style};

/// How each part of the text is drawn.
pub(super) struct Paint {
    title: Style,
    head: Style,
    bar: Style,
    alarm: Style,
}

impl Paint {
    /// Without escape sequences.
    pub(super) const fn plain() -> Self {
        let plain = Style::new();
        Self { title: plain, head: plain, bar: plain, alarm: plain }
    }

    /// In the terminal's own colours.
    const fn colored() -> Self {
        Self {
            title: Style::new().bold(),
            head: Style::new().dimmed(),
            bar: AnsiColor::Cyan.on_default(),
            alarm: AnsiColor::Red.on_default().bold(),
        }
    }

    /// In colours, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn of_terminal() -> Self {
        match std::env::var_os("NO_COLOR") {
            Some(value) if !value.is_empty() => Self::plain(),
            _ => Self::colored(),
        }
    }

    /// What the text is about.
    pub(super) fn title(&self, text: &str) -> String {
        painted(self.title, text)
    }

    /// The names of columns, and remarks.
    pub(super) fn head(&self, text: &str) -> String {
        painted(self.head, text)
    }

    /// A share.
    pub(super) fn bar(&self, text: &str) -> String {
        painted(self.bar, text)
    }

    /// What should not be.
    pub(super) fn alarm(&self, text: &str) -> String {
        painted(self.alarm, text)
    }
}

fn painted(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}
