//! The `flowgate` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    flowgate::cli::main()
}
