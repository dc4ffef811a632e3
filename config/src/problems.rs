//! Where problems are gathered while a text is read, and put in order at its end.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Fault, Printable, Problem};
use crate::schema::Shapes;

/// How much of a value is shown, in characters.
const EXCERPT: usize = 60;

/// All that has been found wrong with a configuration so far.
pub(crate) struct Problems<'a> {
    /// All texts, one after the other: what stands where is an offset into this.
    text: &'a str,
    /// The texts' names, each with where it begins.
    files: Vec<(usize, Arc<str>)>,
    line_starts: Vec<usize>,
    /// The lines that are not TOML. What the parser makes of them is a guess.
    damaged: HashSet<usize>,
    /// Where it is noted what readers would take, rather than what is wrong.
    shapes: Option<Shapes>,
    errors: RefCell<Vec<Finding>>,
    warnings: RefCell<Vec<Finding>>,
}

/// Where something stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<str>,
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
    pub(crate) fn new(
        text: &'a str,
        files: Vec<(usize, Arc<str>)>,
        syntax_errors: Vec<Finding>,
    ) -> Self {
        let line_ends = text.match_indices('\n').map(|(end, _)| end + 1);
        let mut problems = Self {
            text,
            files,
            line_starts: std::iter::once(0).chain(line_ends).collect(),
            damaged: HashSet::new(),
            shapes: None,
            errors: RefCell::default(),
            warnings: RefCell::default(),
        };
        problems.damaged = syntax_errors.iter().map(|error| problems.line(error.at)).collect();
        problems.errors = syntax_errors.into();
        problems
    }

    /// None of any text: readers are asked what they take.
    pub(crate) fn describing() -> Self {
        let shapes = Some(Shapes::default());
        Self { shapes, ..Self::new("", vec![(0, "".into())], Vec::new()) }
    }

    /// Where readers are to note what they take, if they are asked.
    pub(crate) fn shapes(&self) -> Option<&Shapes> {
        self.shapes.as_ref()
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

    /// The line of an offset in all texts together, from 1.
    fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= at)
    }

    /// The file of an offset, and the line within it, from 1.
    fn file_and_line(&self, at: usize) -> (&Arc<str>, u32) {
        let file = self.files.partition_point(|(start, _)| *start <= at).saturating_sub(1);
        let (start, name) = &self.files[file];
        let line = self.line(at) + 1 - self.line(*start);
        (name, u32::try_from(line).unwrap_or(u32::MAX))
    }

    /// Where an offset is, as a message about another one says it.
    pub(crate) fn describe_line(&self, at: usize, seen_from: usize) -> String {
        let (file, line) = self.file_and_line(at);
        match self.file_and_line(seen_from) {
            (same, _) if same == file => format!("line {line}"),
            _ => format!("{}:{line}", Printable(file)),
        }
    }

    /// Where an offset is, with the path of the key there.
    pub(crate) fn place_of(&self, at: usize, key: String) -> Place {
        let (file, line) = self.file_and_line(at);
        let before = self.text.get(self.line_starts[self.line(at) - 1]..at);
        let column = 1 + before.map_or(0, |before| before.chars().count());
        let column = u32::try_from(column).unwrap_or(u32::MAX);
        Place { file: Arc::clone(file), line, column, key }
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
            let (file, line) = self.file_and_line(found.at);
            Problem {
                file: Arc::clone(file),
                line,
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
    /// What is wrong with a text that begins at `start`.
    pub(crate) fn of_syntax(error: &toml::de::Error, start: usize) -> Self {
        Self {
            at: start + error.span().map_or(0, |span| span.start),
            key: String::new(),
            fault: Fault::Syntax(Printable(error.message()).to_string()),
            allowed: None,
            suggestion: None,
        }
    }
}
