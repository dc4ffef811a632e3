//! The few colours of the demo.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

/// How each part of the text is drawn.
pub(super) struct Paint {
    title: Style,
    head: Style,
    bar: Style,
    alarm: Style,
}

impl Paint {
    /// Without colours.
    pub(super) const fn plain() -> Self {
        let plain = Style::new();
        Self { title: plain, head: plain, bar: plain, alarm: plain }
    }

    /// In the terminal's own colours.
    const fn colored() -> Self {
        Self {
            title: Style::new().add_modifier(Modifier::BOLD),
            head: Style::new().add_modifier(Modifier::DIM),
            bar: Style::new().fg(Color::Cyan),
            alarm: Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
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
    pub(super) fn title(&self, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.title)
    }

    /// The names of columns, and remarks.
    pub(super) fn head(&self, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.head)
    }

    /// A share.
    pub(super) fn bar(&self, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.bar)
    }

    /// What should not be.
    pub(super) fn alarm(&self, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.alarm)
    }
}

/// Lines as they are written where nothing is redrawn.
pub(super) fn written(lines: &[Line<'_>]) -> String {
    lines.iter().flat_map(|line| line.iter().map(span).chain(["\n".to_owned()])).collect()
}

/// With the escape sequences of its style (ECMA-48, SGR), if it has one.
fn span(span: &Span<'_>) -> String {
    let modifiers = [(Modifier::BOLD, "1"), (Modifier::DIM, "2")];
    let colors = [(Color::Red, "31"), (Color::Cyan, "36")];
    let modifiers =
        modifiers.iter().filter(|(modifier, _)| span.style.add_modifier.contains(*modifier));
    let colors = colors.iter().filter(|(color, _)| span.style.fg == Some(*color));
    let codes: Vec<_> =
        modifiers.map(|(_, code)| *code).chain(colors.map(|(_, code)| *code)).collect();
    match codes[..] {
        [] => span.content.to_string(),
        _ => format!("\x1b[{}m{}\x1b[0m", codes.join(";"), span.content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_style_is_written_with_escape_sequences() {
        let paint = Paint::colored();
        let line = Line::from(vec![paint.alarm("3"), Span::raw(" of "), paint.bar("4")]);
        assert_eq!(written(&[line]), "\x1b[1;31m3\x1b[0m of \x1b[36m4\x1b[0m\n");
        assert_eq!(written(&[Line::from(Paint::plain().title("all"))]), "all\n");
    }
}
