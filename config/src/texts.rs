//! The texts that a configuration is written in, one or several, made one document: values stand
//! where the whole has them, and what strings ask of the environment is in its place.

use std::borrow::Cow;
use std::mem::{replace, take};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::{Fault, Printable};
use crate::problems::{Finding, Problems};
use crate::reader::Path;

/// A text of a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// What it is called in messages.
    pub file: &'a str,
    /// What it says.
    pub text: &'a str,
}

/// Tells what a variable of the environment holds.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The key whose list goes on from one text to the next.
const LISTS: &str = "listener";

/// All texts in one, with where each begins.
pub(crate) fn join(texts: &[Text<'_>]) -> (String, Vec<usize>) {
    let (mut all, mut starts) = (String::new(), Vec::new());
    for Text { text, .. } in texts {
        // Each begins a line.
        if !all.is_empty() && !all.ends_with('\n') {
            all.push('\n');
        }
        starts.push(all.len());
        all.push_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    }
    (all, starts)
}

/// The document that several make, each with where its text begins.
///
/// Tables of the same name become one, as long as no key of theirs is in two texts; listeners
/// follow one another.
pub(crate) fn merge<'a>(
    problems: &Problems<'_>,
    tables: Vec<(usize, DeTable<'a>)>,
    environment: Environment<'_>,
) -> DeTable<'a> {
    let merger = Merger { problems, environment };
    let mut document = DeTable::new();
    for (start, mut table) in tables {
        move_table(&mut table, start);
        merger.add(&mut document, table);
    }
    merger.expand_table(&mut document, &Path::Root);
    document
}

struct Merger<'p> {
    problems: &'p Problems<'p>,
    environment: Environment<'p>,
}

impl Merger<'_> {
    fn add<'a>(&self, document: &mut DeTable<'a>, table: DeTable<'a>) {
        for (key, value) in table {
            let path = Path::Key(&Path::Root, key.get_ref());
            let Some(former) = document.get_mut(key.get_ref().as_ref()) else {
                document.insert(key, value);
                continue;
            };
            let first = former.span();
            match (former.get_mut(), value.into_inner()) {
                (DeValue::Array(all), DeValue::Array(mut more)) if *key.get_ref() == LISTS => {
                    for value in more.iter_mut() {
                        let span = value.span();
                        all.push(Spanned::new(span, taken(value)));
                    }
                }
                (DeValue::Table(all), DeValue::Table(more)) => {
                    for (name, value) in more {
                        if let Some(first) = all.get(name.get_ref().as_ref()) {
                            self.again(
                                &Path::Key(&path, name.get_ref()),
                                name.span(),
                                first.span(),
                            );
                        } else {
                            all.insert(name, value);
                        }
                    }
                }
                _ => self.again(&path, key.span(), first),
            }
        }
    }

    fn again(&self, path: &Path<'_>, span: Range<usize>, first: Range<usize>) {
        let first = self.problems.describe_line(first.start, span.start);
        self.report(path, span, Fault::Again { first }, "each key in one file only");
    }

    fn report(&self, path: &Path<'_>, span: Range<usize>, fault: Fault, allowed: &str) {
        self.problems.error(Finding {
            at: span.start,
            key: path.to_string(),
            fault,
            allowed: Some(allowed.to_owned()),
            suggestion: None,
        });
    }

    fn expand_table(&self, table: &mut DeTable<'_>, path: &Path<'_>) {
        for (key, value) in table.iter_mut() {
            self.expand_value(value, &Path::Key(path, key.get_ref()));
        }
    }

    fn expand_value(&self, value: &mut Spanned<DeValue<'_>>, path: &Path<'_>) {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => self.expand_table(table, path),
            DeValue::Array(list) => {
                for (index, value) in list.iter_mut().enumerate() {
                    self.expand_value(value, &Path::Index(path, index));
                }
            }
            DeValue::String(text) => self.expand(text, &span, path),
            _ => {}
        }
    }

    /// Puts variables of the environment where a string names them.
    fn expand(&self, text: &mut DeString<'_>, span: &Range<usize>, path: &Path<'_>) {
        if !text.contains("${") {
            return;
        }
        match expanded(text, self.environment) {
            Ok(expanded) => *text = Cow::Owned(expanded),
            Err(fault) => self.report(path, span.clone(), fault, VARIABLE),
        }
    }
}

const VARIABLE: &str = "${NAME} for a variable that is set, $${ for what is to stay \"${\"";

/// A value, out of its place.
fn taken<'a>(value: &mut Spanned<DeValue<'a>>) -> DeValue<'a> {
    replace(value.get_mut(), DeValue::Boolean(false))
}

/// Moves all of a table to where its text begins in the whole.
fn move_table(table: &mut DeTable<'_>, start: usize) {
    for (key, mut value) in take(table) {
        move_value(&mut value, start);
        let span = moved(key.span(), start);
        table.insert(Spanned::new(span, key.into_inner()), value);
    }
}

fn move_value(value: &mut Spanned<DeValue<'_>>, start: usize) {
    let span = moved(value.span(), start);
    let mut inner = taken(value);
    match &mut inner {
        DeValue::Table(table) => move_table(table, start),
        DeValue::Array(list) => list.iter_mut().for_each(|value| move_value(value, start)),
        _ => {}
    }
    *value = Spanned::new(span, inner);
}

fn moved(span: Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

/// A string with what stands for `${NAME}`, and `${` for `$${`. What a variable holds is taken as it
/// is.
fn expanded(text: &str, environment: Environment<'_>) -> Result<String, Fault> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
        let name = after.split_once('}').filter(|(name, _)| {
            name.starts_with(is_start) && name.chars().all(|c| is_start(c) || c.is_ascii_digit())
        });
        let Some((name, after)) = name else {
            return Err(Fault::Invalid { found: "\"${\" without a name and \"}\"".to_owned() });
        };
        let Some(value) = environment(name) else {
            return Err(Fault::NoVariable { name: Printable(name).to_string() });
        };
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// A document as a text that asks nothing of the environment.
pub(crate) fn render(document: &DeTable<'_>) -> String {
    // Nothing of a document is more than the format can hold.
    toml::to_string(&table(document)).unwrap_or_default()
}

fn table(from: &DeTable<'_>) -> toml::Table {
    from.iter().map(|(key, value)| (key.get_ref().to_string(), render_value(value))).collect()
}

fn render_value(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => text.replace("${", "$${").into(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).unwrap_or_default().into()
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().unwrap_or_default().into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(time) => (*time).into(),
        DeValue::Array(list) => list.iter().map(render_value).collect::<Vec<_>>().into(),
        DeValue::Table(entries) => table(entries).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, Fault> {
        expanded(text, &|name| match name {
            "NAME" => Some("web".to_owned()),
            "_9" => Some("${NAME}".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn variables_and_the_escape_are_expanded_once() {
        for (text, expected) in [
            ("${NAME}", "web"),
            ("a-${NAME}-${NAME}b", "a-web-webb"),
            ("$NAME {NAME} $", "$NAME {NAME} $"),
            ("$${NAME}", "${NAME}"),
            ("$$${NAME}", "$${NAME}"),
            ("${_9}", "${NAME}"),
            ("${NAME}$${${NAME}", "web${web"),
        ] {
            assert_eq!(with(text).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn what_names_no_variable_is_refused() {
        for text in ["${", "${}", "${NAME", "${9}", "${NA ME}", "${NAME:-x}", "x${é}"] {
            assert!(matches!(with(text), Err(Fault::Invalid { .. })), "{text:?}");
        }
        assert_eq!(with("${OTHER}"), Err(Fault::NoVariable { name: "OTHER".to_owned() }));
    }
}
