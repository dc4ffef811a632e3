//! `flowgate check`: is a configuration valid, and what does it say?

use std::path::{Path, PathBuf};

use clap::Args;
use flowgate_config::{Config, ConfigFileError, Listener, Problem};
use flowgate_core::config::Mode;
use serde_json::{Value, json};

use super::{ConfigArgument, DEFAULT_CONFIG, Failure};
use crate::admin::escape::escaped_json;
use crate::control::io::{self, Io};
use crate::control::reach;

/// The arguments of `flowgate check`.
#[derive(Args, Debug)]
pub(super) struct CheckArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
}

impl CheckArguments {
    /// Those of a plain check of this file, or of the usual one.
    pub(super) fn of(config: Option<PathBuf>) -> Self {
        let usual = || std::env::var_os("FLOWGATE_CONFIG").unwrap_or(DEFAULT_CONFIG.into()).into();
        let config = ConfigArgument { config: config.unwrap_or_else(usual) };
        Self { config, json: false, strict: false }
    }
}

pub(super) fn run(arguments: &CheckArguments) -> Result<(), Failure> {
    let path = &arguments.config.config;
    let loaded = flowgate_config::load(path);
    let unfit = loaded.as_ref().ok().and_then(|config| unfit(config).err());
    if arguments.json {
        let document = document(&loaded, unfit.as_deref(), arguments.strict);
        println!("{}", escaped_json(&format!("{document:#}")));
    }
    let config = loaded?;
    if let Some(reason) = unfit {
        return Err(Failure(reason));
    }
    if !arguments.json {
        for warning in &config.warnings {
            eprintln!("warning: {warning}");
        }
    }
    match config.warnings.len() {
        0 => {}
        _ if !arguments.strict => {}
        1 => return Err(Failure("refused: there is a warning, and --strict".to_owned())),
        count => return Err(Failure(format!("refused: there are {count} warnings, and --strict"))),
    }
    if !arguments.json {
        summary(path, &config);
    }
    Ok(())
}

/// What of a configuration is less here than on Linux.
fn remarks(config: &Config) -> Vec<String> {
    Io::of_this_process().map_or_else(|_| Vec::new(), |io| io::remarks(config, io))
}

/// What a configuration asks for that cannot be, if anything.
fn unfit(config: &Config) -> Result<(), String> {
    let io = Io::of_this_process().map_err(|error| error.to_string())?;
    io::check(config, io).map_err(|error| error.to_string())?;
    reach::check(config).map_err(|error| error.to_string())
}

fn summary(path: &Path, config: &Config) {
    println!("{}: valid", path.display());
    for listener in &config.listeners {
        let cluster = &listener.cluster;
        println!(
            "  listener {:?} on {}{} -> cluster {:?}: {}, {} backend{}",
            listener.name,
            listener.written_address(),
            listener.interface.as_ref().map(|name| format!(" at {name}")).unwrap_or_default(),
            cluster.name,
            describe(listener),
            cluster.members.len(),
            if cluster.members.len() == 1 { "" } else { "s" },
        );
        if let Some(announce) = &listener.announce {
            let least = announce.min_backends_up;
            println!("    announced by itself, while at least {least} of its backends are up");
        }
        if cluster.is_direct {
            println!(
                "    answers do not come by here: no flows, no counts of answers, no passive health; \
                 for each backend see `flowgate explain --backend-setup {}`",
                path.display()
            );
        }
    }
    for remark in remarks(config) {
        println!("  {remark}");
    }
}

/// How a listener's datagrams are shared out.
fn describe(listener: &Listener) -> String {
    let policy = &listener.cluster.policy;
    match policy.mode {
        Mode::Session { .. } => policy.balance.to_string(),
        Mode::OneWay if listener.cluster.is_direct => format!("direct return, {}", policy.balance),
        Mode::OneWay => format!("one-way, {}", policy.balance),
        Mode::FanOut { .. } => "fan-out".to_owned(),
    }
}

/// What was found, for programs.
fn document(loaded: &Result<Config, ConfigFileError>, unfit: Option<&str>, strict: bool) -> Value {
    let problem = |problem: &Problem| {
        json!({
            "file": &*problem.file,
            "line": problem.line,
            "column": problem.column,
            "key": problem.key,
            "message": problem.to_string(),
        })
    };
    let refused = |reason: String| json!({ "valid": false, "errors": [{ "message": reason }], "warnings": [] });
    if let Some(reason) = unfit {
        return refused(reason.to_owned());
    }
    match loaded {
        Ok(config) => json!({
            "valid": !strict || config.warnings.is_empty(),
            "errors": [],
            "warnings": config.warnings.iter().map(problem).collect::<Vec<_>>(),
            "remarks": remarks(config),
            "listeners": config.listeners.iter().map(|listener| json!({
                "name": listener.name,
                "address": listener.written_address(),
                "interface": listener.interface,
                "cluster": listener.cluster.name,
                "balance": describe(listener),
                "backends": listener.cluster.members.len(),
                "announced": listener.announce.is_some(),
                "return": if listener.cluster.is_direct { "direct" } else { "nat" },
            })).collect::<Vec<_>>(),
        }),
        Err(ConfigFileError::Invalid(errors)) => json!({
            "valid": false,
            "errors": errors.iter().map(problem).collect::<Vec<_>>(),
            "warnings": [],
        }),
        Err(error) => refused(error.to_string()),
    }
}
