//! What a configuration may look like, as a JSON schema, for editors and checkers.
//!
//! It is not written down: the readers of the configuration are asked for it. They read a document
//! in which every key is missing, and what each of them would allow in its place is noted.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use toml::de::DeTable;

use crate::problems::Problems;
use crate::read;
use crate::reader::{Path, Table};

/// What a reader takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Boolean,
    Text,
    Words(Vec<&'static str>),
    Integer {
        least: String,
        most: String,
    },
    /// Of any kind, within limits that the description tells.
    Number,
    /// A table whose keys are known.
    Table,
    /// A table whose keys are the user's names.
    Names,
    List,
}

/// What has been noted of all keys.
#[derive(Default)]
pub(crate) struct Shapes(RefCell<BTreeMap<Vec<Step>, Noted>>);

/// One step on the way from the document to a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Key(String),
    /// Whatever stands in a list, or under a name.
    Each,
}

#[derive(Default)]
struct Noted {
    shapes: Vec<Shape>,
    description: Option<String>,
    is_required: bool,
}

impl Shapes {
    pub(crate) fn note(&self, path: &Path<'_>, shape: Shape) {
        let mut all = self.0.borrow_mut();
        let noted = all.entry(path.steps()).or_default();
        if !noted.shapes.contains(&shape) {
            noted.shapes.push(shape);
        }
    }

    pub(crate) fn describe(&self, path: &Path<'_>, allowed: String) {
        self.0.borrow_mut().entry(path.steps()).or_default().description = Some(allowed);
    }

    pub(crate) fn require(&self, path: &Path<'_>) {
        self.0.borrow_mut().entry(path.steps()).or_default().is_required = true;
    }
}

/// The JSON schema of the configuration, as it is in TOML.
///
/// It tells the keys, their types, words and ranges, and takes every valid configuration. What keys
/// say of one another it does not tell: `flowgate check` does.
pub fn schema() -> Value {
    let problems = Problems::describing();
    let empty = DeTable::new();
    Table::document(&problems, &empty).read(read::document);
    let all = problems.shapes().map(|shapes| shapes.0.take()).unwrap_or_default();
    let mut document = of(&all, &[]);
    document.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
    document.insert("title".into(), "flowgate.toml".into());
    document.into()
}

fn of(all: &BTreeMap<Vec<Step>, Noted>, path: &[Step]) -> Map<String, Value> {
    let root = Noted { shapes: vec![Shape::Table], ..Noted::default() };
    let noted = if path.is_empty() { &root } else { &all[path] };
    let under = |step: Step| of(all, &[path, &[step]].concat());
    let one = |shape: &Shape| match shape {
        Shape::Boolean => json!({ "type": "boolean" }),
        Shape::Text => json!({ "type": "string" }),
        // What the environment makes of a string is not known here.
        Shape::Words(words) => {
            json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": "\\$\\{" }] })
        }
        Shape::Integer { least, most } => {
            let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
            json!({ "type": "integer", "minimum": number(least), "maximum": number(most) })
        }
        Shape::Number => json!({ "type": "number" }),
        Shape::List => json!({ "type": "array", "items": under(Step::Each) }),
        Shape::Names => json!({ "type": "object", "additionalProperties": under(Step::Each) }),
        Shape::Table => {
            let is_here =
                |steps: &&Vec<Step>| steps.len() == path.len() + 1 && steps.starts_with(path);
            let (mut keys, mut required) = (Map::new(), Vec::new());
            for steps in all.keys().filter(is_here) {
                let Some(Step::Key(key)) = steps.last() else { continue };
                keys.insert(key.clone(), under(Step::Key(key.clone())).into());
                if all[steps].is_required {
                    required.push(key.clone());
                }
            }
            let mut table =
                json!({ "type": "object", "properties": keys, "additionalProperties": false });
            if !required.is_empty() {
                table["required"] = required.into();
            }
            table
        }
    };
    let schema = match &noted.shapes[..] {
        [shape] => one(shape),
        shapes => json!({ "anyOf": shapes.iter().map(one).collect::<Vec<_>>() }),
    };
    let Value::Object(mut schema) = schema else { return Map::new() };
    if let Some(description) = &noted.description {
        schema.insert("description".into(), description.clone().into());
    }
    schema
}
