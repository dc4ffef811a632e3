//! Where problems are gathered while a text is read, and put in order at its end.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Fault, Printable, Problem};

/// How much of a value is shown, in characters.
const EXCERPT: usize = 60;

/// All that has been found wrong with one text so far.
pub(crate) struct Problems<'a> {
    text: &'a str,
    file: Arc<str>,
    line_starts: Vec<usize>,
    /// The lines that are not TOML. What the parser makes of them is a guess.
    damaged: HashSet<usize>,
    errors: RefCell<Vec<Finding>>,
    warnings: RefCell<Vec<Finding>>,
}

/// Where something stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// The path of its key.
    pub(crate) key: String,
}

/// A problem whose place is still an offset.
#[derive(PartialEq)]
pub(crate) struct Finding {
    pub(crate) at: usize,
    pub(crate) key: String,
    pub(crate) fault: Fault,
    pub(crate) allowed: Option<String>,
    pub(crate) suggestion: Option<String>,
}

impl<'a> Problems<'a> {
    pub(crate) fn new(text: &'a str, file: &str, syntax_errors: &[toml::de::Error]) -> Self {
        let line_ends = text.match_indices('\n').map(|(end, _)| end + 1);
        let mut problems = Self {
            text,
            file: file.into(),
            line_starts: std::iter::once(0).chain(line_ends).collect(),
            damaged: HashSet::new(),
            errors: RefCell::default(),
            warnings: RefCell::default(),
        };
        let syntax_errors: Vec<Finding> = syntax_errors.iter().map(Finding::of_syntax).collect();
        problems.damaged = syntax_errors.iter().map(|error| problems.line(error.at)).collect();
        problems.errors = syntax_errors.into();
        problems
    }

    /// Whether parts of the text are not TOML, so that what is not found may be in there.
    pub(crate) fn text_is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Notes what is wrong, unless its line is damaged: then it is an echo of that.
    pub(crate) fn error(&self, found: Finding) {
        if !self.is_damaged(found.at) {
            self.errors.borrow_mut().push(found);
        }
    }

    /// Notes what is legal but odd.
    pub(crate) fn warning(&self, found: Finding) {
        self.warnings.borrow_mut().push(found);
    }

    /// Whether the line at an offset is not TOML.
    pub(crate) fn is_damaged(&self, at: usize) -> bool {
        self.damaged.contains(&self.line(at))
    }

    /// The line of an offset, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= at)
    }

    /// The line and the column in characters of an offset, from 1.
    pub(crate) fn line_and_column(&self, at: usize) -> (u32, u32) {
        let line = self.line(at);
        let before = self.text.get(self.line_starts[line - 1]..at);
        let column = 1 + before.map_or(0, |before| before.chars().count());
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    /// What the user wrote at `span`, fit to be shown.
    pub(crate) fn excerpt(&self, span: Range<usize>) -> String {
        let written = self.text.get(span).unwrap_or_default();
        match written.char_indices().nth(EXCERPT) {
            Some((end, _)) => format!("{}...", Printable(&written[..end])),
            None => Printable(written).to_string(),
        }
    }

    /// The errors and the warnings, each in the order of the text.
    pub(crate) fn conclude(self) -> (Vec<Problem>, Vec<Problem>) {
        let (errors, warnings) = (self.errors.take(), self.warnings.take());
        (self.place(errors), self.place(warnings))
    }

    /// Gives each draft its line and column, in one pass over the text however many there are.
    fn place(&self, mut findings: Vec<Finding>) -> Vec<Problem> {
        findings.sort_by_key(|found| found.at);
        findings.dedup();
        let (mut line, mut offset, mut column) = (1, 0, 1);
        let place = |found: Finding| {
            if self.line(found.at) != line {
                line = self.line(found.at);
                (offset, column) = (self.line_starts[line - 1], 1);
            }
            column += self.text.get(offset..found.at).map_or(0, |before| before.chars().count());
            offset = found.at;
            Problem {
                file: Arc::clone(&self.file),
                line: u32::try_from(line).unwrap_or(u32::MAX),
                column: u32::try_from(column).unwrap_or(u32::MAX),
                key: found.key,
                fault: found.fault,
                allowed: found.allowed,
                suggestion: found.suggestion,
            }
        };
        findings.into_iter().map(place).collect()
    }
}

impl Finding {
    fn of_syntax(error: &toml::de::Error) -> Self {
        Self {
            at: error.span().map_or(0, |span| span.start),
            key: String::new(),
            fault: Fault::Syntax(Printable(error.message()).to_string()),
            allowed: None,
            suggestion: None,
        }
    }
}
