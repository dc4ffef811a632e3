//! Tests that cannot take place here say so, where it is seen.

use std::fs::File;
use std::io::Write;

use flowgate::control::io::Io;

/// A file that each skipped test adds a line to, for a summary when all have run.
const LIST: &str = "FLOWGATE_SKIPPED";

/// Says why a test does not take place. `None`, for callers that would return what is missing.
pub fn skip<T>(reason: &str) -> Option<T> {
    let thread = std::thread::current();
    let line = format!("SKIPPED: {}: {reason}\n", thread.name().unwrap_or("a test"));
    // What `eprintln!` prints is captured, and thrown away when the test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os(LIST) {
        // At once, so that lines of tests that run side by side are not mixed up.
        let mut list = File::options().create(true).append(true).open(path).expect(LIST);
        list.write_all(line.as_bytes()).expect(LIST);
    }
    None
}

/// Whether a test needs what the I/O lacks by which this pass of the tests runs. Says so then.
pub fn lacks(what: &str) -> bool {
    let lacks = Io::of_this_process() == Ok(Io::Portable);
    if lacks {
        skip_test(&format!("FLOWGATE_IO is portable, which lacks {what}"));
    }
    lacks
}

/// The same where there is nothing to return.
pub fn skip_test(reason: &str) {
    skip::<()>(reason);
}
