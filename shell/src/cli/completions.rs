//! `flowgate completions`: scripts for shells, which ask the running process for its backends.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::ask::{SocketOption, fault, put};
use super::{Arguments, Failure};
use crate::admin::request::{Request, Response};

/// The commands whose first argument is a backend.
const ABOUT_BACKENDS: [&str; 3] = ["drain", "undrain", "backend"];

pub(super) fn run(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), "flowgate", &mut script);
    let script = String::from_utf8(script)?;
    put(&match shell {
        Shell::Bash => script + &bash(),
        Shell::Zsh => zsh(&script),
        Shell::Fish => script + &fish(),
        _ => script,
    })
}

/// What the scripts call: each backend on a line, as the commands take it.
pub(super) fn backends(socket: &SocketOption) -> Result<(), Failure> {
    let answer = socket.ask(&Request::Status)?;
    let Response::Status(status) = &answer else { return Err(fault(&answer)) };
    let names = status.clusters.iter().flat_map(|cluster| {
        cluster.backends.iter().map(move |backend| format!("{}/{}", cluster.name, backend.address))
    });
    let is_plain = |name: &String| !name.contains(char::is_control);
    put(&names.filter(is_plain).map(|name| name + "\n").collect::<String>())
}

/// Bash takes a colon for the end of a word, so what is before it is there already.
fn bash() -> String {
    let commands = ABOUT_BACKENDS.join("|");
    format!(
        r#"
_flowgate_backends() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" each before at takes=
    local word="${{line##*[[:space:]]}}"
    local ahead="${{line%"$word"}}"
    local -a socket=()
    for ((at = 2; at < COMP_CWORD; at++)); do
        if [[ "${{COMP_WORDS[at]}}" == --socket ]]; then
            socket=(--socket "${{COMP_WORDS[at + 1]}}")
        fi
    done
    if [[ "${{COMP_WORDS[1]}}" =~ ^({commands})$ && "$word" != -* ]]; then
        takes=name
    elif [[ "$ahead" =~ [[:space:]]--backend[[:space:]]+$ ]]; then
        takes=name
        if [[ "${{COMP_WORDS[1]}}" == flows ]]; then
            takes=address
        fi
    fi
    if [[ -n "$takes" ]]; then
        before="${{word%"${{word##*:}}"}}"
        COMPREPLY=()
        while IFS= read -r each; do
            if [[ "$takes" == address ]]; then
                each="${{each##*/}}"
            fi
            if [[ "$each" == "$word"* ]]; then
                COMPREPLY+=("${{each#"$before"}}")
            fi
        done < <("${{COMP_WORDS[0]}}" __backends "${{socket[@]}}" 2>/dev/null)
        if ((${{#COMPREPLY[@]}} > 0)); then
            return 0
        fi
    fi
    _flowgate "$@"
}}
complete -F _flowgate_backends -o bashdefault -o default flowgate
"#
    )
}

fn zsh(script: &str) -> String {
    const FUNCTION: &str = r#"
_flowgate_backends() {
    local -a backends
    backends=(${(f)"$(_call_program backends flowgate __backends 2>/dev/null)"})
    compadd -a backends
}

_flowgate_addresses() {
    local -a backends
    backends=(${(f)"$(_call_program backends flowgate __backends 2>/dev/null)"})
    backends=(${backends##*/})
    compadd -a backends
}
"#;
    let with_function = |line: &str| {
        let is_backend = line.trim_start().starts_with("':backend -- ");
        let is_option = line.trim_start().starts_with("'--backend=[");
        let line = if is_option && line.contains(":ADDR:") {
            line.replace(":_default'", ":_flowgate_addresses'")
        } else if is_backend || is_option {
            line.replace(":_default'", ":_flowgate_backends'")
        } else {
            line.into()
        };
        let more = if line.starts_with("#compdef") { FUNCTION } else { "" };
        format!("{line}\n{more}")
    };
    script.lines().map(with_function).collect()
}

fn fish() -> String {
    let line = |command: &str| {
        format!(
            "complete -c flowgate -n \"__fish_flowgate_using_subcommand {command}\" -f \
             -a \"(flowgate __backends 2>/dev/null)\"\n"
        )
    };
    let option = |command: &str, only: &str| {
        format!(
            "complete -c flowgate -n \"__fish_flowgate_using_subcommand {command}\" -l backend -x \
             -a \"(flowgate __backends 2>/dev/null{only})\"\n"
        )
    };
    let options = [("trace", ""), ("flows", " | string replace -r '.*/' ''")];
    let options = options.map(|(command, only)| option(command, only));
    ABOUT_BACKENDS.into_iter().map(line).chain(options).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_that_can_asks_for_backends() {
        let of = |shell: Shell| {
            let mut script = Vec::new();
            generate(shell, &mut Arguments::command(), "flowgate", &mut script);
            String::from_utf8(script).unwrap()
        };
        let zsh = zsh(&of(Shell::Zsh));
        let trace = 1;
        assert_eq!(zsh.matches(":_flowgate_backends'").count(), ABOUT_BACKENDS.len() + trace);
        assert_eq!(zsh.matches(":_flowgate_addresses'").count(), 1, "of flows");
        assert!(of(Shell::Fish).contains("__fish_flowgate_using_subcommand"));
        assert!(of(Shell::Bash).contains("_flowgate() {"));
    }
}
