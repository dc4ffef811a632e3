//! The rules of the house that a compiler does not check: where `unsafe`, errnos, what is a kernel's
//! and the clock may be, who may import whom, and that documents name code that exists.
//!
//! A document names code as `path#symbol` between backticks, the path from the root of the
//! repository: `core/src/manager/admit.rs#handle_client_burst`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// All files below a folder that end so, with paths from the root.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && name != ".git" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines of a Rust file with the contents of comments and literals taken out.
fn code(source: &str) -> Vec<String> {
    let mut code = String::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            end_of_string(rest)
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\") {
            rest[2..].find('\'').map_or(rest.len(), |end| end + 3)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        rest = &rest[skipped..];
    }
    code.lines().map(str::to_owned).collect()
}

/// How long the string literal is that `text` begins with, quotes included.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// How many hashes the raw string has that `text` begins with, if it does.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?;
    let quote = hashes.trim_start_matches('#');
    quote.starts_with('"').then(|| hashes.len() - quote.len())
}

/// The words of a line: identifiers, keywords and numbers.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Where a line of code of `folders` breaks a rule, unless the file may.
fn violations(
    folders: &[&str],
    may: impl Fn(&Path) -> bool,
    breaks: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for path in folders.iter().flat_map(|folder| files(folder, "rs")).filter(|path| !may(path)) {
        let lines = code(&read(&path));
        let broken = lines.iter().enumerate().filter(|(_, line)| breaks(line));
        let describe = |(number, line): (usize, &String)| {
            format!("{}:{}: {}", path.display(), number + 1, line.trim())
        };
        found.extend(broken.map(describe));
    }
    found
}

#[test]
fn unsafe_code_is_only_where_the_system_is_called() {
    let found = violations(
        &["core", "config", "quic-lb", "fastpath", "shell", "discover", "tests", "bench"],
        |path| ["shell/src/sys", "fastpath/src"].iter().any(|folder| path.starts_with(folder)),
        |line| words(line).any(|word| word == "unsafe"),
    );
    assert!(found.is_empty(), "unsafe belongs under shell/src/sys and fastpath/src: {found:#?}");
}

/// Whether a line sorts errors by their numbers.
fn names_an_errno(line: &str) -> bool {
    const WORDS: [&str; 4] = ["Errno", "errno_location", "raw_os_error", "from_raw_os_error"];
    let is_a_number = |word: &str| {
        let name = word.strip_prefix("WSA").unwrap_or(word);
        ["EAGAIN", "EINTR", "EINVAL", "EIO", "EWOULDBLOCK", "EPERM", "EACCES", "ENOENT"]
            .contains(&name)
            || name.starts_with("ECONN")
            || name.starts_with("ENO")
            || name.starts_with("EADDR")
    };
    words(line).any(|word| WORDS.contains(&word) || is_a_number(word))
}

#[test]
fn errors_are_told_apart_by_their_numbers_where_the_system_is_called() {
    let may = |path: &Path| {
        let is_of_tests = path.ends_with("tests.rs");
        path.starts_with("shell/src/sys") || is_of_tests
    };
    let found = violations(&["core/src", "config/src", "shell/src"], may, names_an_errno);
    assert!(found.is_empty(), "errnos belong into shell/src/sys: {found:#?}");
}

/// Whether a line names what one kernel alone has for many datagrams at once.
fn names_batches_of_linux(line: &str) -> bool {
    const NAMES: [&str; 6] = ["mmsghdr", "msghdr", "cmsghdr", "recvmmsg", "sendmmsg", "iovec"];
    words(line).any(|word| NAMES.contains(&word))
}

#[test]
fn the_batches_of_linux_are_named_by_what_is_built_for_linux_alone() {
    let may = |path: &Path| {
        let of_linux =
            ["mmsg", "mmsg.rs", "cmsg.rs", "scm.rs", "sockaddr.rs", "netlink", "netlink.rs"];
        of_linux.iter().any(|name| path.starts_with(Path::new("shell/src/sys").join(name)))
    };
    let found = violations(
        &["core/src", "config/src", "shell/src", "tests/support"],
        may,
        names_batches_of_linux,
    );
    assert!(found.is_empty(), "these are of Linux's own kernel: {found:#?}");
}

#[test]
fn the_clock_is_read_in_one_place() {
    // The core has an `Instant` of its own, which nothing but a caller sets.
    let reads = |line: &str| {
        let names = |name| words(line).any(|word| word == name);
        let is_std = line.contains("std::time") && names("Instant");
        is_std || names("SystemTime") || names("clock_gettime") || line.contains("Instant::now")
    };
    let may = |path: &Path| path == Path::new("shell/src/sys/clock.rs");
    let found = violations(&["core/src", "config/src", "fastpath/src", "shell/src"], may, reads);
    assert!(found.is_empty(), "only shell/src/sys/clock.rs reads the clock: {found:#?}");
}

/// The name of the type that a line defines for others, if it does.
fn public_type(line: &str) -> Option<&str> {
    const KINDS: [&str; 5] = ["struct", "enum", "trait", "type", "union"];
    let mut words = words(line.trim().strip_prefix("pub ")?);
    KINDS.contains(&words.next()?).then(|| words.next()).flatten()
}

#[test]
fn no_two_public_types_have_one_name() {
    let mut defined = BTreeMap::<String, Vec<PathBuf>>::new();
    // What takes the place of a module on another system has its names.
    let is_of_another_system =
        |path: &PathBuf| path.ends_with("none.rs") || path.ends_with("windows.rs");
    for package in ["core", "config", "quic-lb", "fastpath", "shell"] {
        let sources = files(&format!("{package}/src"), "rs").into_iter();
        for path in sources.filter(|path| !is_of_another_system(path)) {
            for line in code(&read(&path)) {
                if let Some(name) = public_type(&line) {
                    defined.entry(name.to_owned()).or_default().push(path.clone());
                }
            }
        }
    }
    assert!(defined.contains_key("UdpManager") && defined.len() > 100);
    defined.retain(|_, paths| paths.len() > 1);
    assert!(defined.is_empty(), "a search for one of these finds another: {defined:#?}");
}

#[test]
fn imports_go_one_way() {
    let ours = |line: &str| {
        let name = line.split([' ', '.', '=']).next().unwrap_or_default();
        name.starts_with("flowgate").then(|| name.to_owned())
    };
    for (package, allowed) in [
        ("quic-lb", &[][..]),
        ("discover", &[]),
        ("core", &["flowgate-quic-lb"]),
        ("config", &["flowgate-core", "flowgate-quic-lb"]),
        ("fastpath", &[]),
        ("shell", &["flowgate-config", "flowgate-core", "flowgate-fastpath"]),
    ] {
        let manifest = read(&Path::new(package).join("Cargo.toml"));
        // Of tests too: what a test of the core needs of the shell is a test of both.
        let dependencies: Vec<_> = manifest.lines().filter_map(ours).collect();
        let unexpected: Vec<_> =
            dependencies.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(unexpected.is_empty(), "{package} imports {unexpected:?}");
    }
}

/// What is wrong with the code that a document names.
fn broken_anchors(document: &str) -> Vec<String> {
    let quoted = document.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|quoted| broken_anchor(quoted).map(|why| format!("`{quoted}`: {why}")))
        .collect()
}

/// What is wrong with an anchor; nothing if it is none.
fn broken_anchor(quoted: &str) -> Option<&'static str> {
    let (path, symbol) = match quoted.split_once('#') {
        Some((path, symbol)) => (path, Some(symbol)),
        None => (quoted, None),
    };
    let is_path = path.contains('/') && path.ends_with(".rs") && !path.contains(['*', ' ', '{']);
    if !is_path {
        return None;
    }
    // Without a symbol it may be a path from somewhere else than the root.
    match (std::fs::read_to_string(root().join(path)), symbol) {
        (Err(_), Some(_)) => Some("there is no such file"),
        (Ok(source), Some(symbol)) if !defines(&source, symbol) => Some("it does not define that"),
        _ => None,
    }
}

/// Whether a file defines an item, or a variant of an enum, of that name.
fn defines(source: &str, symbol: &str) -> bool {
    const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "const", "static", "type", "mod"];
    code(source).iter().any(|line| {
        let names: Vec<_> = words(line).collect();
        let is_item = names.windows(2).any(|pair| ITEMS.contains(&pair[0]) && pair[1] == symbol);
        let rest = line.trim().strip_prefix(symbol).map(str::trim_start);
        let is_variant = symbol.starts_with(char::is_uppercase)
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['{', '(', ',', '=']));
        is_item
            || is_variant
            || (names.first() == Some(&"macro_rules") && names.get(1) == Some(&symbol))
    })
}

#[test]
fn documents_name_code_that_exists() {
    let documents = files(".", "md");
    assert!(documents.contains(&PathBuf::from("LIFECYCLE.md")));
    let mut anchors = 0;
    for path in documents {
        let document = read(&path);
        anchors += document.matches(".rs#").count();
        let broken = broken_anchors(&document);
        assert!(broken.is_empty(), "{}: {broken:#?}", path.display());
    }
    assert!(anchors > 10, "LIFECYCLE.md names its code as `path#symbol`");
}

#[test]
fn a_broken_rule_would_be_found() {
    let broken = "a `core/src/manager.rs#UdpManager` b `core/src/manager.rs#Nothing` c\n\
                  `core/src/nowhere.rs#f` `config.rs#f` `core/src/output.rs#SendToClient`";
    assert_eq!(broken_anchors(broken).len(), 2, "{:?}", broken_anchors(broken));
    let source =
        "let a = \"unsafe\"; // unsafe\nlet b = '\"'; unsafe {}\n/* unsafe\n */ r#\"unsafe\"#";
    let code = code(source);
    let found: Vec<_> =
        (0..code.len()).filter(|n| words(&code[*n]).any(|w| w == "unsafe")).collect();
    assert_eq!(found, [1]);
    for line in ["Some(libc::EAGAIN)", "match error.raw_os_error() {", "WSAECONNRESET => {}"] {
        assert!(names_an_errno(line), "{line}");
    }
    assert!(!names_an_errno("io::ErrorKind::WouldBlock => ENABLED"));
    assert!(names_batches_of_linux("let header: libc::mmsghdr;"));
    assert_eq!(public_type("    pub struct Flow<'a> {"), Some("Flow"));
    assert_eq!(public_type("pub(crate) struct Flow;").or(public_type("pub use Flow;")), None);
}
