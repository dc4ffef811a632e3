//! Text of others, made safe to show.
//!
//! Names of listeners, clusters and hosts may hold any character. Shown as it is, an ESC could
//! repaint a terminal, a line break could forge a line of a log or a table, and a mark of writing
//! direction could turn what stands beside it around.

use std::fmt::Write;
use std::path::{MAIN_SEPARATOR, Path};

/// `text` on one line, with every character that does not print written as its escape: `\n`,
/// `\u{1b}`. A backslash is doubled, so that no text looks like another's escape.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // These print; only in a literal they would need an escape.
            '"' | '\'' => safe.push(c),
            _ => safe.extend(c.escape_debug()),
        }
    }
    safe
}

/// A path on one line, with every character that does not print written as its escape. A backslash is
/// doubled unless it stands between names, as on Windows: nobody could copy the path otherwise.
pub fn escaped_path(path: impl AsRef<Path>) -> String {
    with_separator(&path.as_ref().to_string_lossy(), MAIN_SEPARATOR)
}

fn with_separator(path: &str, separator: char) -> String {
    let names: Vec<String> = path.split(separator).map(escaped).collect();
    names.join(separator.encode_utf8(&mut [0; 4]))
}

/// JSON that says the same, with every character that does not print written as its escape.
///
/// JSON itself asks that only of those below U+0020, and a terminal obeys others too. They can only
/// be inside of strings, but for the line breaks between the parts of a document.
pub fn escaped_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii_graphic() || c == ' ' || c == '\n' || prints(c) {
            safe.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    safe
}

/// Whether a character stands for itself.
fn prints(c: char) -> bool {
    c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped() {
        assert_eq!(escaped("a\u{1b}[2Jb\nc\rd\te\0"), "a\\u{1b}[2Jb\\nc\\rd\\te\\0");
        assert_eq!(escaped("\u{7f}\u{9b}\u{202e}\u{2028}"), "\\u{7f}\\u{9b}\\u{202e}\\u{2028}");
    }

    #[test]
    fn what_prints_stays_as_it_is() {
        assert_eq!(escaped("dns \"a\" 'b' zürich 東京"), "dns \"a\" 'b' zürich 東京");
    }

    #[test]
    fn no_text_looks_like_the_escape_of_another() {
        assert_eq!(escaped("\\n"), "\\\\n");
    }

    #[test]
    fn what_stands_between_the_names_of_a_path_stays_as_it_is() {
        let windows = r"\\.\pipe\flowgate\C:\Program Files\flowgate.toml";
        assert_eq!(with_separator(windows, '\\'), windows);
        assert_eq!(with_separator("C:\\a\u{1b}b", '\\'), r"C:\a\u{1b}b");
        assert_eq!(with_separator("/etc/a\\nb\n/", '/'), r"/etc/a\\nb\n/");
    }

    #[test]
    fn escaped_json_is_harmless_and_says_the_same() {
        let names = ["a\u{1b}\u{7f}\u{9b}\n", "\u{202e}\u{e0001}", "zürich 東京 \\ \""];
        let json = serde_json::to_string_pretty(&names).unwrap();
        let safe = escaped_json(&json);
        let harmless = |c: char| c == '\n' || c == '"' || c == '\\' || prints(c);
        assert!(safe.chars().all(harmless), "{safe:?}");
        assert!(safe.contains("東京"), "{safe}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&safe).unwrap(), names);
    }
}
