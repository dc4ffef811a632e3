//! The JSON schema that is generated of the readers, and the copy of it that is installed.

use std::path::{Path, PathBuf};

use flowgate_config::schema;
use serde_json::Value;

use crate::examples::{DEFAULTS, FULL};

/// Set to write the copy again.
const UPDATE: &str = "FLOWGATE_UPDATE_SCHEMA";

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("dist")
}

#[test]
fn the_installed_copy_is_up_to_date() {
    let path = dist().join("flowgate.schema.json");
    let text = format!("{:#}\n", schema());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &text).expect("the copy");
    }
    let copy = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        copy == text,
        "{} is not what the readers say: run the tests with {UPDATE}=1",
        path.display()
    );
}

/// What of a value a schema does not take: as much of JSON schema as ours has.
fn complaints(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let keyword = |name: &str| schema.get(name);
    let mut all = Vec::new();
    if let Some(Value::Array(any)) = keyword("anyOf") {
        let each: Vec<_> = any.iter().map(|one| complaints(one, value, path)).collect();
        if each.iter().all(|complaints| !complaints.is_empty()) {
            all.push(format!("{path}: none of {}", any.len()));
        }
    }
    if let Some(Value::Array(words)) = keyword("enum")
        && !words.contains(value)
    {
        all.push(format!("{path}: {value} is no word of {words:?}"));
    }
    let is_of_type = match keyword("type").and_then(Value::as_str) {
        None => true,
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("{path}: {other}"),
    };
    if !is_of_type {
        all.push(format!("{path}: {value} is not of the type {}", schema["type"]));
    }
    if let (Some(pattern), Some(text)) = (keyword("pattern"), value.as_str()) {
        assert_eq!(pattern, "\\$\\{", "{path}");
        all.extend((!text.contains("${")).then(|| format!("{path}: {text:?} asks for nothing")));
    }
    if let Some(number) = value.as_u64() {
        let limit = |name| keyword(name).and_then(Value::as_u64);
        if limit("minimum").is_some_and(|least| number < least)
            || limit("maximum").is_some_and(|most| number > most)
        {
            all.push(format!("{path}: {number} is out of range"));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        let items = keyword("items").into_iter();
        all.extend(items.flat_map(|items| complaints(items, item, &format!("{path}[{index}]"))));
    }
    for (key, item) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match (
            keyword("properties").and_then(|keys| keys.get(key)),
            keyword("additionalProperties"),
        ) {
            (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => {
                all.extend(complaints(schema, item, &path));
            }
            (None, Some(Value::Bool(false))) => all.push(format!("{path}: unknown")),
            _ => {}
        }
    }
    for key in keyword("required").and_then(Value::as_array).into_iter().flatten() {
        let is_there = value.get(key.as_str().expect("a key")).is_some();
        all.extend((!is_there && value.is_object()).then(|| format!("{path}: no {key}")));
    }
    all
}

fn complaints_about(toml: &str) -> Vec<String> {
    let table: toml::Table = toml.parse().expect("TOML");
    complaints(&schema(), &serde_json::to_value(table).expect("JSON"), "")
}

#[test]
fn it_takes_every_example() {
    let mut read = 0;
    for directory in ["examples", "docker", "debian"] {
        for entry in std::fs::read_dir(dist().join(directory)).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let text = std::fs::read_to_string(&path).expect("a text");
                assert_eq!(complaints_about(&text), [""; 0], "{}", path.display());
                read += 1;
            }
        }
    }
    assert!(read >= 8, "{read} examples");
    for text in [DEFAULTS, FULL] {
        assert_eq!(complaints_about(text), [""; 0]);
    }
    let variable =
        "[[listener]]\naddress = \"${A}\"\ncluster = \"a\"\n[cluster.a]\nbalance = \"${B}\"\n";
    assert_eq!(complaints_about(variable), [""; 0]);
}

#[test]
fn it_refuses_unknown_keys_words_types_and_numbers_out_of_range() {
    let with = |listener: &str, cluster: &str| {
        complaints_about(&format!(
            "[[listener]]\naddress = \"0.0.0.0:53\"\ncluster = \"a\"\n{listener}\n[cluster.a]\n\
             backends = [\"10.0.0.1:53\"]\n{cluster}"
        ))
    };
    assert_eq!(with("", ""), [""; 0]);
    for (listener, cluster) in [
        ("nmae = \"x\"", ""),
        ("v6_only = 1", ""),
        ("max_datagram_size = 65508", ""),
        ("max_datagram_size = 0", ""),
        ("allow = \"10.0.0.0/8\"", ""),
        ("", "balance = \"rendezvou\""),
        ("", "idle_timeout = 5"),
        ("", "affinity = { offset = 1, lenght = 2 }"),
        ("", "affinity = \"source\""),
        ("", "health = { probe = \"icmp\" }"),
        ("", "mirror = { sample = 0.5 }"),
        ("", "quic_lb = [{ rotation = 7 }]"),
        ("", "backends_from = { dns = \"x\" }"),
    ] {
        assert_ne!(with(listener, cluster), [""; 0], "{listener}{cluster}");
    }
    assert_ne!(complaints_about("[[listener]]\naddress = \"0.0.0.0:53\"\n"), [""; 0]);
}
