//! A program that is looked for by its name.

use std::net::SocketAddr;
use std::process::Command;

use crate::process::Scratch;

/// Writes what configures a program, found at a path, to listen at an address in front of backends,
/// and says by which command it is run.
pub(super) type Configure =
    fn(&str, SocketAddr, &[SocketAddr], &Scratch) -> crate::Result<Vec<String>>;

/// Where it is, and which.
pub(super) struct Program {
    path: String,
    pub(super) version: String,
    configure: Configure,
}

impl Program {
    /// The command that runs it in front of `backends`.
    pub(super) fn command(
        &self,
        address: SocketAddr,
        backends: &[SocketAddr],
        scratch: &Scratch,
    ) -> crate::Result<Vec<String>> {
        (self.configure)(&self.path, address, backends, scratch)
    }
}

/// Asks the program `name` for its version; says that it is `missing` where it cannot be run.
pub(super) fn find(
    name: &str,
    ask: &[&str],
    missing: &str,
    configure: Configure,
) -> Result<Program, String> {
    let output = Command::new(name).args(ask).output().map_err(|_| missing.to_owned())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Program { path: name.to_owned(), version: version_in(&said), configure })
}

/// The first thing that looks like a version: three numbers with dots between them.
fn version_in(said: &str) -> String {
    let is_version = |word: &&str| {
        let numbers: Vec<_> = word.split('.').collect();
        numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u32>().is_ok())
    };
    let mut words = said.split(|c: char| c.is_whitespace() || c == '/' || c == '-');
    words.find(is_version).unwrap_or("of unknown version").to_owned()
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for said in [
            "dnsdist 1.7.3 (Lua 5.1.4 [LuaJIT 2.1.0-beta3])",
            "envoy  version: 0123abc/1.7.3/Clean/RELEASE/BoringSSL",
            "Version:      1.7.3\nCodename:     x",
        ] {
            assert_eq!(version_in(said), "1.7.3");
        }
        assert_eq!(version_in("2"), "of unknown version");
    }
}
