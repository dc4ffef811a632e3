//! A reader of spanned TOML that goes on after a problem.
//!
//! A *reader* is a function from an [`Item`] to an `Option`: `None` says that the problem has been
//! reported. Tables are read by asking for each key once, by name and with its reader; a key that
//! was not asked for is unknown. A key that is read may be narrowed to what fits the others: see
//! [`Field::when`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Display};
use std::hash::Hash;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Fault, Printable};
use crate::nearest::nearest;
use crate::problems::{Finding, Place, Problems};
use crate::schema::{Shape, Step};

/// A place in the document where a value is, or where a required one is missing.
pub(crate) struct Item<'a> {
    problems: &'a Problems<'a>,
    path: Path<'a>,
    span: Range<usize>,
    value: Option<&'a DeValue<'a>>,
}

impl<'a> Item<'a> {
    /// The value, for a reader to match on. None: a required key is missing.
    pub(crate) fn value(&self) -> Option<&'a DeValue<'a>> {
        self.value
    }

    /// Whether there is no document, and the question is what may stand here.
    pub(crate) fn is_described(&self) -> bool {
        self.problems.shapes().is_some()
    }

    /// Notes what may stand here, if that is the question.
    pub(crate) fn takes(&self, shape: impl FnOnce() -> Shape) {
        if let Some(shapes) = self.problems.shapes() {
            shapes.note(&self.path, shape());
        }
    }

    /// Reports that the value is none of those `allowed`.
    pub(crate) fn refuse<T>(&self, allowed: impl Display) -> Option<T> {
        self.refuse_typo(allowed, None)
    }

    /// [`refuse`](Self::refuse), with what was probably meant.
    pub(crate) fn refuse_typo<T>(&self, allowed: impl Display, meant: Option<&str>) -> Option<T> {
        if let Some(shapes) = self.problems.shapes() {
            shapes.describe(&self.path, allowed.to_string());
            return None;
        }
        let fault = match self.value {
            Some(_) => Fault::Invalid { found: self.found() },
            None if self.problems.text_is_damaged() => return None,
            None => Fault::Missing,
        };
        self.report(fault, allowed, meant);
        None
    }

    /// [`refuse`](Self::refuse) for a name that nothing in the text has. While parts of the text
    /// cannot be read, nothing is reported, since what it names may be there.
    pub(crate) fn refuse_name<T>(&self, allowed: impl Display, meant: Option<&str>) -> Option<T> {
        if self.problems.text_is_damaged() { None } else { self.refuse_typo(allowed, meant) }
    }

    /// Notes that the value is legal but hardly meant.
    pub(crate) fn warn(&self, fault: Fault) {
        self.problems.warning(self.finding(fault));
    }

    /// Reads a list, every element of it even after one is refused.
    pub(crate) fn list<T>(
        &self,
        allowed: &str,
        mut read: impl FnMut(&Item<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.takes(|| Shape::List);
        let Some(DeValue::Array(array)) = self.value else {
            if self.is_described() {
                read(&self.each());
            }
            return self.refuse(allowed);
        };
        let read = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| {
            read(&Item {
                problems: self.problems,
                path: Path::Index(&self.path, index),
                span: value.span(),
                value: Some(value.get_ref()),
            })
        };
        let all: Vec<Option<T>> = array.iter().enumerate().map(read).collect();
        all.into_iter().collect()
    }

    /// Reads a table whose keys are known.
    pub(crate) fn table<T>(
        &self,
        allowed: &str,
        read: impl FnOnce(&Table<'_>) -> Option<T>,
    ) -> Option<T> {
        self.takes(|| Shape::Table);
        if self.is_described() {
            let empty = DeTable::new();
            Table::new(self.problems, self.path, self.span.clone(), &empty).read(read);
            return self.refuse(allowed);
        }
        let Some(DeValue::Table(entries)) = self.value else {
            return self.refuse(allowed);
        };
        Table::new(self.problems, self.path, self.span.clone(), entries).read(read)
    }

    /// Visits a table whose keys are the user's names, in the order of the text.
    pub(crate) fn entries(&self, allowed: &str, mut visit: impl FnMut(&str, &Item<'_>)) {
        self.takes(|| Shape::Names);
        let Some(DeValue::Table(entries)) = self.value else {
            if self.is_described() {
                visit("NAME", &self.each());
            }
            self.refuse::<()>(allowed);
            return;
        };
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let entry = Item {
                problems: self.problems,
                path: Path::Key(&self.path, name.get_ref()),
                span: value.span(),
                value: Some(value.get_ref()),
            };
            visit(name.get_ref(), &entry);
        }
    }

    /// Any value in it.
    fn each(&self) -> Item<'_> {
        Item {
            problems: self.problems,
            path: Path::Each(&self.path),
            span: self.span.clone(),
            value: None,
        }
    }

    /// Where it stands, for what turns out to be wrong with it later.
    pub(crate) fn place(&self) -> Place {
        self.problems.place_of(self.span.start, self.path.to_string())
    }

    fn found(&self) -> String {
        let written = self.problems.excerpt(self.span.clone());
        match self.value {
            // What the environment has made of it is what is wrong.
            Some(DeValue::String(value)) if written.contains("${") => {
                format!("{written}, which is \"{}\"", Printable(value))
            }
            _ => written,
        }
    }

    fn report(&self, fault: Fault, allowed: impl Display, meant: Option<&str>) {
        self.problems.error(Finding {
            allowed: Some(allowed.to_string()),
            suggestion: meant.map(str::to_owned),
            ..self.finding(fault)
        });
    }

    fn finding(&self, fault: Fault) -> Finding {
        Finding {
            at: self.span.start,
            key: self.path.to_string(),
            fault,
            allowed: None,
            suggestion: None,
        }
    }
}

/// A table whose keys are known.
pub(crate) struct Table<'a> {
    problems: &'a Problems<'a>,
    path: Path<'a>,
    span: Range<usize>,
    entries: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
    /// Keys that there were, and that are refused by themselves.
    former: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// The whole document.
    pub(crate) fn document(problems: &'a Problems<'a>, entries: &'a DeTable<'a>) -> Self {
        Self::new(problems, Path::Root, 0..0, entries)
    }

    fn new(
        problems: &'a Problems<'a>,
        path: Path<'a>,
        span: Range<usize>,
        entries: &'a DeTable<'a>,
    ) -> Self {
        let (asked, former) = Default::default();
        Self { problems, path, span, entries, asked, former }
    }

    /// Reads the table by a function that asks for all its keys, then reports those it did not.
    pub(crate) fn read<T>(self, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Option<T> {
        let result = read(&self);
        self.refuse_unknown_keys();
        result
    }

    /// The value of a key that may be absent.
    pub(crate) fn get<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Item<'_>) -> Option<T>,
    ) -> Field<'_, T> {
        let item = self.item(key);
        let is_read = item.value.is_some() || item.is_described();
        let value = if is_read { read(&item) } else { None };
        Field { item, value }
    }

    /// The value of a key that must be there.
    pub(crate) fn require<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Item<'_>) -> Option<T>,
    ) -> Field<'_, T> {
        let item = self.item(key);
        if let Some(shapes) = self.problems.shapes() {
            shapes.require(&item.path);
        }
        let value = read(&item);
        Field { item, value }
    }

    /// A table within this one. An absent one is read as an empty one, so that a default stands in
    /// one place.
    pub(crate) fn section<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Table<'_>) -> Option<T>,
    ) -> Option<T> {
        let empty = DeValue::Table(DeTable::new());
        let item = self.item(key);
        Item { value: item.value.or(Some(&empty)), ..item }.table("a table", read)
    }

    fn item(&self, key: &'static str) -> Item<'_> {
        self.asked.borrow_mut().push(key);
        let value = self.entries.get(key);
        Item {
            problems: self.problems,
            path: Path::Key(&self.path, key),
            span: value.map_or_else(|| self.span.clone(), |value| value.span()),
            value: value.map(|value| value.get_ref()),
        }
    }

    /// Refuses a key that there was, and says what has taken its place.
    pub(crate) fn refuse_former(&self, key: &'static str, instead: &str) {
        let Some((_, value)) = self.entries.get_key_value(key) else { return };
        self.former.borrow_mut().push(key);
        self.problems.error(Finding {
            at: value.span().start,
            key: Path::Key(&self.path, key).to_string(),
            fault: Fault::UnknownKey,
            allowed: Some(instead.to_owned()),
            suggestion: None,
        });
    }

    fn refuse_unknown_keys(self) {
        let former = self.former.take();
        let mut known = self.asked.take();
        known.sort_unstable();
        for (key, value) in self.entries {
            let name = key.get_ref();
            if known.binary_search(&&**name).is_ok()
                || former.contains(&&**name)
                || self.problems.is_damaged(value.span().start)
            {
                continue;
            }
            self.problems.error(Finding {
                at: key.span().start,
                key: Path::Key(&self.path, name).to_string(),
                fault: Fault::UnknownKey,
                allowed: Some(known.join(", ")),
                suggestion: nearest(name, known.iter().copied()).map(str::to_owned),
            });
        }
    }
}

/// The value of one key: there, absent, or refused.
pub(crate) struct Field<'a, T> {
    pub(crate) item: Item<'a>,
    /// None where it is absent or refused.
    pub(crate) value: Option<T>,
}

impl<T> Field<'_, T> {
    /// Whether there is a value, and it has been refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.value.is_none() && self.item.value.is_some()
    }

    /// Refuses a value that does not fit the rest.
    pub(crate) fn when(self, fits: impl FnOnce(&T) -> bool, allowed: &str) -> Self {
        let value = match self.value {
            Some(value) if !fits(&value) => self.item.refuse(allowed),
            value => value,
        };
        Self { value, ..self }
    }

    /// The value, or `default` where there is none.
    pub(crate) fn or(self, default: T) -> T {
        self.value.unwrap_or(default)
    }
}

/// What must be different in each element of a list, and where the first is that has it.
pub(crate) struct Claims<K>(HashMap<K, usize>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Claims<K> {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whether `key` is the first of its kind. Otherwise refuses `item`.
    pub(crate) fn claim(&mut self, key: K, item: &Item<'_>, allowed: &str) -> bool {
        match self.0.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(item.span.start);
                true
            }
            Entry::Occupied(first) => {
                let first = item.problems.describe_line(*first.get(), item.span.start);
                item.refuse::<()>(format_args!("{allowed} ({first} has it)"));
                false
            }
        }
    }
}

/// The way to a value, from the inside out, so that it costs nothing until a problem shows it.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    /// Any value of a list or table.
    Each(&'a Path<'a>),
}

impl Path<'_> {
    /// The steps from the document to the value.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let (mut steps, step) = match self {
            Self::Root => return Vec::new(),
            Self::Key(table, key) => (table.steps(), Step::Key((*key).to_owned())),
            Self::Index(whole, _) | Self::Each(whole) => (whole.steps(), Step::Each),
        };
        steps.push(step);
        steps
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Each(whole) => write!(f, "{whole}[]"),
            Self::Index(list, index) => write!(f, "{list}[{index}]"),
            Self::Key(table, key) => {
                let dot = if matches!(table, Self::Root) { "" } else { "." };
                let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if !key.is_empty() && key.chars().all(is_bare) {
                    write!(f, "{table}{dot}{key}")
                } else {
                    write!(f, "{table}{dot}{key:?}")
                }
            }
        }
    }
}
