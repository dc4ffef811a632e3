//! The status page: one document that brings along all it needs.

use std::io;

use crate::sys::process;

const DOCUMENT: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPTS: [&str; 4] = [
    include_str!("page/format.js"),
    include_str!("page/chart.js"),
    include_str!("page/tables.js"),
    include_str!("page/page.js"),
];

/// A number that nobody can guess, to mark what belongs to one copy of the page.
pub(super) fn nonce() -> io::Result<String> {
    Ok(format!("{:016x}{:016x}", process::random_seed()?, process::random_seed()?))
}

/// The page, its parts marked with `nonce`.
pub(super) fn html(nonce: &str) -> String {
    DOCUMENT
        .replace("/* style */", STYLE)
        .replace("/* script */", &SCRIPTS.concat())
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
    fn no_two_copies_are_marked_alike() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
