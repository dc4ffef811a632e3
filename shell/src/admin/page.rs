//! The status page: one document that brings along all it needs.

use std::collections::BTreeMap;
use std::io;

use flowgate_core::DropReason;

use crate::sys::process;

const DOCUMENT: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPTS: [&str; 4] = [
    include_str!("page/format.js"),
    include_str!("page/chart.js"),
    include_str!("page/tables.js"),
    include_str!("page/page.js"),
];

/// Whose table of reasons the page shows.
const GUIDE: &str = include_str!("../../../docs/operations.md");

/// What the guide says of each reason to drop a datagram, as JSON.
fn reasons() -> String {
    let rows = GUIDE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let reason = cells.next()?.strip_suffix('`')?;
        let known = DropReason::ALL.iter().any(|known| known.as_str() == reason);
        known.then(|| Some((reason, cells.next()?.replace('`', "")))).flatten()
    });
    let reasons: BTreeMap<&str, String> = rows.collect();
    // Within a script nothing of it may look like its end.
    serde_json::json!(reasons).to_string().replace('<', "\\u003c")
}

/// The reasons for which clients are refused on purpose, as JSON.
fn on_purpose() -> String {
    let all = DropReason::ALL.iter().filter(|reason| reason.is_on_purpose());
    let names: Vec<_> = all.map(|reason| reason.as_str()).collect();
    serde_json::json!(names).to_string()
}

/// A number that nobody can guess, to mark what belongs to one copy of the page.
pub(super) fn nonce() -> io::Result<String> {
    Ok(format!("{:016x}{:016x}", process::random_seed()?, process::random_seed()?))
}

/// The page, its parts marked with `nonce`.
pub(super) fn html(nonce: &str) -> String {
    let script = SCRIPTS.concat();
    let script = script.replace("/* reasons */{}", &reasons());
    let script = script.replace("/* on purpose */[]", &on_purpose());
    DOCUMENT
        .replace("/* style */", STYLE)
        .replace("/* script */", &script)
        .replace("{nonce}", nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_and_refers_to_nothing_else() {
        let page = html("0123456789abcdef");
        assert_eq!(page.matches("nonce=\"0123456789abcdef\"").count(), 2);
        assert!(!page.contains("{nonce}") && !page.contains("/* script */"));
        for reference in ["http:", "https:", "src=", "@import", "url(", "innerHTML"] {
            assert!(!page.contains(reference), "{reference}");
        }
        // The parts end where they should.
        assert_eq!(page.matches("</script>").count(), 1);
        assert_eq!(page.matches("</style>").count(), 1);
    }

    #[test]
    fn it_has_a_sentence_of_the_guide_for_each_reason_to_drop() {
        let reasons: BTreeMap<String, String> = serde_json::from_str(&reasons()).unwrap();
        for reason in DropReason::ALL {
            let sentence = &reasons[reason.as_str()];
            assert!(sentence.len() > 10 && !sentence.contains('`'), "{reason}: {sentence}");
        }
        assert!(html("").contains("const REASONS = {\""));
        assert!(html("").contains("const DELIBERATE = new Set([\"draining\",\"denied\","));
    }

    #[test]
    fn no_two_copies_are_marked_alike() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
