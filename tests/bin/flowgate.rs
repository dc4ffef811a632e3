//! The `flowgate` command, for tests to run.

fn main() -> std::process::ExitCode {
    flowgate::cli::main()
}
