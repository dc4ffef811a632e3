//! Where the demo is watched: in place on a terminal, line by line anywhere else.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use flowgate_core::Instant;

use super::paint::Paint;
use super::sample::{Sample, Stretch};
use super::table;

/// No cursor, and lines that are cut rather than wrapped, so that a frame is as many rows as it has
/// lines.
const BEGIN: &str = "\x1b[?25l\x1b[?7l";

/// The cursor and wrapped lines again.
const END: &str = "\x1b[?7h\x1b[?25h";

/// Ends a row and erases what an earlier frame had further right.
const NEXT_ROW: &str = "\x1b[K\n";

/// Erases what is below the cursor.
const ERASE_BELOW: &str = "\x1b[J";

/// How many samples the figures of a frame span: a second, so that they do not flutter.
const FRAMES_PER_SECOND: usize = 4;

/// What the samples are shown on.
pub(super) enum Screen {
    /// A terminal that can be redrawn.
    Terminal(Terminal),
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
            Terminal::open(title, length, start).map(Self::Terminal)
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

/// A terminal, redrawn in place. Dropping it erases the last frame and gives the cursor back.
pub(super) struct Terminal {
    title: String,
    start: Instant,
    length: Option<Duration>,
    paint: Paint,
    /// Those of the last second, never none.
    samples: VecDeque<Sample>,
    /// How many rows the frame has that the cursor is below.
    rows: usize,
}

impl Terminal {
    fn open(title: String, length: Option<Duration>, start: Sample) -> io::Result<Self> {
        put(BEGIN)?;
        let samples = VecDeque::from([start.clone()]);
        Ok(Self { title, start: start.at, length, paint: Paint::of_terminal(), samples, rows: 0 })
    }

    fn show(&mut self, sample: Sample) -> io::Result<()> {
        let frame = self.frame(Stretch { from: &self.samples[0], to: &sample });
        // In one write, so that no half of a frame is ever seen.
        put(&format!("{}{}{ERASE_BELOW}", self.home(), frame.replace('\n', NEXT_ROW)))?;
        self.rows = frame.lines().count();
        if self.samples.len() == FRAMES_PER_SECOND {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        Ok(())
    }

    fn frame(&self, stretch: Stretch<'_>) -> String {
        let passed = stretch.to.at.saturating_since(self.start);
        let of = self.length.map(|length| format!(" of {} s", length.as_secs()));
        let time = format!("{} s{}", passed.as_secs(), of.unwrap_or_default());
        let (title, page) = self.title.split_once('\n').unwrap_or((&self.title, ""));
        format!(
            "\n{}{time:>width$}\n{page}\n\n{}\n{}\n",
            self.paint.title(title),
            table::tables(stretch, &self.paint),
            self.paint.head("Ctrl-C ends it."),
            width = 79_usize.saturating_sub(title.chars().count()),
        )
    }

    /// Moves the cursor from below the frame to its first row.
    fn home(&self) -> String {
        match self.rows {
            0 => "\r".to_owned(),
            rows => format!("\r\x1b[{rows}A"),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = put(&format!("{}{ERASE_BELOW}{END}", self.home()));
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
