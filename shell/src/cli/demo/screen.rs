//! Where the demo is watched: in place on a terminal, line by line anywhere else.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use flowgate_core::Instant;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::paint::Paint;
use super::sample::{Sample, Stretch};
use super::table;

/// How many samples the figures of a frame span: a second, so that they do not flutter.
const FRAMES_PER_SECOND: usize = 4;

/// What the samples are shown on.
pub(super) enum Screen {
    /// A terminal that can be redrawn.
    Terminal(Box<Terminal>),
    /// A file, a pipe or a terminal that cannot.
    Lines(Lines),
}

impl Screen {
    /// The one that standard output can be. `title` says what is shown, and `length` for how long.
    ///
    /// # Errors
    ///
    /// Those of writing to it, here and below.
    pub(super) fn open(title: String, length: Option<Duration>, start: Sample) -> io::Result<Self> {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if io::stdout().is_terminal() && !is_dumb {
            Terminal::open(title, length, start).map(|terminal| Self::Terminal(Box::new(terminal)))
        } else {
            Lines::open(&title, start).map(Self::Lines)
        }
    }

    /// How long after one sample it wants the next.
    pub(super) fn period(&self) -> Duration {
        match self {
            Self::Terminal(_) => Duration::from_secs(1) / FRAMES_PER_SECOND as u32,
            Self::Lines(_) => Duration::from_secs(1),
        }
    }

    /// Shows a sample.
    pub(super) fn show(&mut self, sample: Sample) -> io::Result<()> {
        match self {
            Self::Terminal(terminal) => terminal.show(sample),
            Self::Lines(lines) => lines.show(sample),
        }
    }

    /// Ends the show with a last word, in place of the last frame or below the last line.
    pub(super) fn close(self, last_word: impl FnOnce(&Paint) -> String) -> io::Result<()> {
        let paint = match &self {
            Self::Terminal(_) => Paint::of_terminal(),
            Self::Lines(_) => Paint::plain(),
        };
        drop(self);
        put(&last_word(&paint))
    }
}

/// Writes to standard output, at once.
fn put(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A terminal, redrawn in place. Dropping it gives back what was there before.
pub(super) struct Terminal {
    terminal: ratatui::Terminal<CrosstermBackend<io::Stdout>>,
    title: String,
    start: Instant,
    length: Option<Duration>,
    paint: Paint,
    /// Those of the last second, never none.
    samples: VecDeque<Sample>,
}

impl Terminal {
    fn open(title: String, length: Option<Duration>, start: Sample) -> io::Result<Self> {
        let terminal = ratatui::Terminal::new(CrosstermBackend::new(io::stdout()))?;
        let samples = VecDeque::from([start.clone()]);
        let paint = Paint::of_terminal();
        let mut opened = Self { terminal, title, start: start.at, length, paint, samples };
        execute!(io::stdout(), EnterAlternateScreen)?;
        opened.terminal.hide_cursor()?;
        Ok(opened)
    }

    fn show(&mut self, sample: Sample) -> io::Result<()> {
        let lines = self.lines(Stretch { from: &self.samples[0], to: &sample });
        self.terminal.draw(|frame| frame.render_widget(Paragraph::new(lines), frame.area()))?;
        if self.samples.len() == FRAMES_PER_SECOND {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        Ok(())
    }

    fn lines(&self, stretch: Stretch<'_>) -> Vec<Line<'static>> {
        let passed = stretch.to.at.saturating_since(self.start);
        let of = self.length.map(|length| format!(" of {} s", length.as_secs()));
        let time = format!("{} s{}", passed.as_secs(), of.unwrap_or_default());
        let (title, page) = self.title.split_once('\n').unwrap_or((&self.title, ""));
        let width = 79_usize.saturating_sub(title.chars().count());
        let mut lines = vec![
            Line::default(),
            vec![self.paint.title(title), Span::raw(format!("{time:>width$}"))].into(),
            Line::raw(page.to_owned()),
            Line::default(),
        ];
        lines.extend(table::tables(stretch, &self.paint));
        lines.extend([Line::default(), self.paint.head("Ctrl-C ends it.").into()]);
        lines
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        let _ = execute!(io::stdout(), LeaveAlternateScreen);
    }
}

/// Lines, one for each sample, each about the time since the one before.
pub(super) struct Lines {
    before: Box<Sample>,
    number: u64,
}

impl Lines {
    fn open(title: &str, start: Sample) -> io::Result<Self> {
        put(&format!("{title}\n\n{}", table::line_head()))?;
        Ok(Self { before: Box::new(start), number: 0 })
    }

    fn show(&mut self, sample: Sample) -> io::Result<()> {
        self.number += 1;
        put(&table::line(self.number, Stretch { from: &self.before, to: &sample }))?;
        *self.before = sample;
        Ok(())
    }
}
