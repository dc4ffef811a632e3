//! What is installed: the Debian package, the units of systemd, the man pages, and what the process
//! and its service manager have to say to each other.
//!
//! What needs a tool that is not there prints `SKIPPED:` and the reason.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use flowgate_config::Fault;
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::skip_test;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether a tool is there. Says so if it is not.
fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
    let is_there = found.is_ok_and(|output| output.status.success());
    if !is_there {
        skip_test(&format!("{tool} is not installed"));
    }
    is_there
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command printed, which must succeed.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("a child process");
    assert!(status.success(), "{command:?}: {status}\n{}\n{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// Builds the package of the binary under test.
#[track_caller]
fn package(into: &Scratch) -> String {
    let mut build = Command::new(root().join("dist/debian/build"));
    build.arg(into.path()).env("FLOWGATE_BINARY", FLOWGATE);
    build.env("DEB_COMPRESSION", "gzip").env("SOURCE_DATE_EPOCH", "1700000000");
    build.env("DEBFULLNAME", "The Flowgate maintainers").env("DEBEMAIL", "flowgate@debian.org");
    printed(&mut build).trim().to_owned()
}

#[test]
fn a_release_is_an_archive_a_package_a_bill_of_materials_and_their_checksums() {
    if !["dpkg-deb", "python3", "git", "tar"].into_iter().all(has) {
        return;
    }
    let build = |scratch: &Scratch| {
        let mut build = Command::new(root().join("dist/build"));
        build.arg(scratch.path()).env("DEB_COMPRESSION", "gzip").env("DEBEMAIL", "a@example.org");
        // The one program stands for both: what is in the archive matters here.
        build.env("FLOWGATE_BINARY", FLOWGATE).env("FLOWGATE_DISCOVER_BINARY", FLOWGATE);
        printed(build.env("SOURCE_DATE_EPOCH", "1700000000"));
        let sums = std::fs::read_to_string(scratch.path().join("SHA256SUMS")).expect("checksums");
        printed(Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(scratch.path()));
        sums
    };
    let scratch = Scratch::new("release");
    let sums = build(&scratch);
    let file = |end: &str| {
        let names = sums.lines().filter_map(|line| line.split_whitespace().nth(1));
        let name = { names }.find(|name| name.ends_with(end)).unwrap_or_else(|| panic!("{sums}"));
        scratch.path().join(name)
    };
    file(".deb");
    let archive = file(".tar.gz");
    let contents = printed(Command::new("tar").arg("-tf").arg(&archive));
    for path in ["/flowgate", "/flowgate-discover", "/man/flowgate.1", "/completions/flowgate.bash"]
    {
        assert!(contents.lines().any(|line| line.ends_with(path)), "{path}: {contents}");
    }
    let bill = std::fs::read_to_string(file(".cdx.json")).expect("a document");
    let bill: serde_json::Value = serde_json::from_str(&bill).expect("JSON");
    let components = bill["components"].as_array().expect("components");
    let is_listed = |name: &str| components.iter().any(|component| component["name"] == name);
    // What is used, with what that uses; not what only tests do.
    assert!(["flowgate-core", "mio", "libc", "kube"].into_iter().all(is_listed));
    assert!(!is_listed("proptest"));
    for component in components {
        let is_ours = component["name"].as_str().is_some_and(|name| name.starts_with("flowgate"));
        assert!(is_ours || component["hashes"][0]["content"].is_string(), "{component}");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
}

/// Has `dist/build` find a program of this name first.
fn stand_in(scratch: &Scratch, name: &str, script: &str) {
    let path = scratch.path().join("bin").join(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    std::fs::write(&path, format!("#!/bin/sh\n{script}")).expect("a script");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a mode");
}

/// What is built is stood in for: what is released of it matters here.
#[test]
fn a_release_for_all_has_an_archive_for_each_system_and_says_what_is_left_out() {
    if !["dpkg-deb", "python3", "git", "tar"].into_iter().all(has) {
        return;
    }
    let scratch = Scratch::new("everything");
    let cargo = printed(Command::new("sh").args(["-c", "command -v cargo"]));
    stand_in(
        &scratch,
        "cargo",
        &format!(
            "[ \"$1\" = build ] || exec {} \"$@\"\n\
             while [ $# -gt 0 ]; do case $1 in --target) target=$2;; --package) program=$2;; esac; shift; done\n\
             case $target in *-windows-*) program=$program.exe;; esac\n\
             mkdir -p $CARGO_TARGET_DIR/$target/release\n\
             cp /bin/true $CARGO_TARGET_DIR/$target/release/$program\n",
            cargo.trim()
        ),
    );
    stand_in(&scratch, "rustup", "[ $3 != x86_64-unknown-linux-musl ]");
    for compiler in ["musl-gcc", "x86_64-w64-mingw32-gcc", "aarch64-linux-gnu-gcc"] {
        stand_in(&scratch, compiler, "exit 1");
    }
    let path = std::env::var("PATH").expect("a path");
    let output = scratch.path().join("released");
    let mut build = Command::new(root().join("dist/build"));
    build.arg(&output).env("TARGETS", "all");
    build.env("FLOWGATE_BINARY", FLOWGATE).env("FLOWGATE_DISCOVER_BINARY", "/bin/true");
    build.env("PATH", format!("{}:{path}", scratch.path().join("bin").display()));
    build.env("CARGO_TARGET_DIR", scratch.path().join("target"));
    build.env("DEB_COMPRESSION", "gzip").env("DEBEMAIL", "a@example.org");
    build.env("SOURCE_DATE_EPOCH", "1700000000");
    let Output { status, stdout, stderr } = build.output().expect("a child process");
    let (said, complaints) = (text(&stdout), text(&stderr));
    assert!(status.success(), "{said}{complaints}");
    assert!(complaints.contains("skipped: x86_64-unknown-linux-musl"), "{complaints}");
    let sums = std::fs::read_to_string(output.join("SHA256SUMS")).expect("checksums");
    let contents = |target: &str| {
        let name = sums.split_whitespace().find(|name| name.contains(target));
        let name = name.unwrap_or_else(|| panic!("{target}: {sums}"));
        printed(Command::new("tar").arg("-tf").arg(output.join(name)))
    };
    let windows = contents("x86_64-pc-windows-gnu");
    for program in ["/flowgate.exe\n", "/flowgate-discover.exe\n"] {
        assert!(windows.contains(program), "{windows}");
    }
    let arm = contents("aarch64-unknown-linux-gnu");
    assert!(arm.contains("/flowgate\n") && arm.contains("/flowgate-discover\n"), "{arm}");
    assert!(!sums.contains("musl"), "{sums}");
    printed(Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(&output));
}

/// By what stands in for FreeBSD's rc.subr(8).
#[test]
fn the_script_for_freebsd_checks_and_names_a_command_that_runs() {
    let scratch = Scratch::new("rc.d");
    let config = scratch.path().join("flowgate.toml");
    let directory = scratch.path().join("run");
    std::fs::write(
        &config,
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"a\"\n[cluster.a]\nbackends = [\"127.0.0.1:9\"]\n",
    )
    .expect("a file");
    let subr = "load_rc_config() { :; }\n\
                run_rc_command() { $start_precmd && echo \"$flowgate_env: $command_args\"; }\n";
    let script = read("dist/rc.d/flowgate")
        .replace(". /etc/rc.subr\n", subr)
        .replace("/usr/local/bin/flowgate", FLOWGATE)
        .replace("=/var/run/flowgate", &format!("={}", directory.display()));
    let run = |config: &Path| {
        let mut shell = Command::new("sh");
        shell.args(["-euc", &script, "flowgate", "start"]).env("flowgate_config", config);
        shell.env("flowgate_user", nix::unistd::getuid().to_string());
        shell.output().expect("a child process")
    };
    let Output { status, stdout, stderr } = run(&config);
    let said = text(&stdout);
    assert!(status.success() && directory.is_dir(), "{said}{}", text(&stderr));
    let (environment, arguments) =
        said.lines().last().and_then(|l| l.split_once(": ")).expect("both");
    assert_eq!(environment, format!("RUNTIME_DIRECTORY={}", directory.display()));
    let (_, arguments) = arguments.split_once(FLOWGATE).expect("the program");
    assert_eq!(arguments, format!(" run {}", config.display()));
    assert!(!run(&scratch.path().join("none.toml")).status.success());
}

#[test]
fn the_job_for_launchd_is_a_property_list_that_names_a_command_that_runs() {
    if !has("python3") {
        return;
    }
    let read = "import json, plistlib, sys\n\
                print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let path = root().join("dist/launchd/flowgate.plist");
    let job = printed(Command::new("python3").args(["-c", read]).arg(path));
    let job: serde_json::Value = serde_json::from_str(&job).expect("JSON");
    assert_eq!(job["ProgramArguments"][1], "run");
    assert_eq!(job["KeepAlive"]["SuccessfulExit"], false);
    // Commands look there.
    assert_eq!(job["EnvironmentVariables"]["RUNTIME_DIRECTORY"], "/var/run/flowgate");
}

#[test]
fn the_package_holds_all_that_an_operator_needs() {
    if !has("dpkg-deb") {
        return;
    }
    let scratch = Scratch::new("contents");
    let package = package(&scratch);
    let contents = printed(Command::new("dpkg-deb").args(["--contents", &package]));
    let files: BTreeSet<(&str, &str)> = contents
        .lines()
        .filter(|line| !line.starts_with('d'))
        .map(|line| (&line[..10], line.rsplit(" ./").next().expect("a path")))
        .collect();
    for path in [
        "etc/flowgate/flowgate.toml",
        "etc/logrotate.d/flowgate",
        "usr/lib/systemd/system/flowgate.service",
        "usr/lib/systemd/system/flowgate.socket",
        "usr/lib/sysusers.d/flowgate.conf",
        "usr/share/bash-completion/completions/flowgate",
        "usr/share/zsh/vendor-completions/_flowgate",
        "usr/share/fish/vendor_completions.d/flowgate.fish",
        "usr/share/man/man1/flowgate.1.gz",
        "usr/share/man/man5/flowgate.toml.5.gz",
        "usr/share/doc/flowgate/changelog.gz",
        "usr/share/doc/flowgate/changelog.Debian.gz",
        "usr/share/doc/flowgate/copyright",
        "usr/share/doc/flowgate/operations.md",
        "usr/share/doc/flowgate/examples/dns.toml",
        "usr/share/doc/flowgate/flowgate.schema.json",
        "usr/share/doc/flowgate/prometheus/flowgate.rules.yml",
        "usr/share/doc/flowgate/grafana/flowgate.json",
    ] {
        assert!(files.contains(&("-rw-r--r--", path)), "{path} in {contents}");
    }
    assert!(files.contains(&("-rwxr-xr-x", "usr/bin/flowgate")), "{contents}");
    assert!(contents.lines().all(|line| line.contains(" root/root ")), "{contents}");
}

#[test]
fn the_package_says_what_it_is_and_needs() {
    if !has("dpkg-deb") {
        return;
    }
    let scratch = Scratch::new("control");
    let package = package(&scratch);
    let field = |name: &str| {
        printed(Command::new("dpkg-deb").args(["--field", &package, name])).trim().to_owned()
    };
    assert_eq!(field("Package"), "flowgate");
    assert_eq!(field("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    assert_eq!(
        field("Architecture"),
        printed(Command::new("dpkg").arg("--print-architecture")).trim()
    );
    assert!(field("Depends").starts_with("libc6 (>= 2."), "{}", field("Depends"));
    let control = scratch.path().join("control");
    printed(Command::new("dpkg-deb").arg("--control").arg(&package).arg(&control));
    let conffiles = std::fs::read_to_string(control.join("conffiles")).expect("a list");
    assert_eq!(conffiles, "/etc/flowgate/flowgate.toml\n/etc/logrotate.d/flowgate\n");
    for script in ["postinst", "prerm", "postrm"] {
        printed(Command::new("sh").arg("-n").arg(control.join(script)));
    }
}

#[test]
fn the_binary_in_the_package_runs() {
    if !has("dpkg-deb") {
        return;
    }
    let scratch = Scratch::new("runs");
    let package = package(&scratch);
    let installed = scratch.path().join("installed");
    printed(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&installed));
    let mut check = Command::new(installed.join("usr/bin/flowgate"));
    check.arg("check").arg(installed.join("etc/flowgate/flowgate.toml"));
    assert!(printed(&mut check).contains("valid"));
}

#[test]
fn lintian_finds_nothing_wrong_with_the_package() {
    if !has("dpkg-deb") || !has("lintian") {
        return;
    }
    let scratch = Scratch::new("lintian");
    let package = package(&scratch);
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]);
    printed(lintian.arg(&package));
}

/// The units as systemd finds them, with the binary under test in the place of the installed one.
fn units(scratch: &Scratch) -> [PathBuf; 2] {
    let service = scratch.path().join("flowgate.service");
    let socket = scratch.path().join("flowgate.socket");
    let is_document = |line: &&str| !line.starts_with("Documentation=");
    for (unit, path) in [("flowgate.service", &service), ("flowgate.socket", &socket)] {
        let unit = read(&format!("dist/systemd/{unit}")).replace("/usr/bin/flowgate", FLOWGATE);
        let lines: Vec<_> = unit.lines().filter(is_document).collect();
        std::fs::write(path, lines.join("\n")).expect("a file");
    }
    [service, socket]
}

#[test]
fn systemd_understands_the_units() {
    if !has("systemd-analyze") {
        return;
    }
    let scratch = Scratch::new("units");
    let mut verify = Command::new("systemd-analyze");
    // It reads the units that ours ask for, too. What is wrong with those is their packages' matter.
    verify.args(["--recursive-errors=no", "verify"]).args(units(&scratch));
    let output = verify.output().expect("a child process");
    let complaints = text(&output.stderr);
    let is_of_ours = |line: &&str| line.contains("flowgate");
    assert_eq!(complaints.lines().filter(is_of_ours).collect::<Vec<_>>(), [""; 0]);
    assert!(output.status.success(), "{complaints}");
}

#[test]
fn systemd_finds_the_service_well_confined() {
    if !has("systemd-analyze") {
        return;
    }
    let scratch = Scratch::new("confined");
    let [service, _] = units(&scratch);
    // A scale from 0 to 10, here times ten. Up to 2 is the best grade that has network in it.
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--threshold=20", "--no-pager"]).arg(service);
    printed(&mut security);
}

#[test]
fn the_service_may_do_what_the_guide_says_and_no_more() {
    let unit = read("dist/systemd/flowgate.service");
    for line in [
        "Type=notify",
        "ExecStart=/usr/bin/flowgate run /etc/flowgate/flowgate.toml",
        "ExecReload=/usr/bin/flowgate reload",
        "User=flowgate",
        "RuntimeDirectory=flowgate",
        "LogsDirectory=flowgate",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "NoNewPrivileges=yes",
        "LimitNOFILE=1048576",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    assert!(read("dist/sysusers.d/flowgate.conf").contains("\nu flowgate - "));
}

#[test]
fn man_pages_are_well_formed() {
    let pages = ["flowgate.1", "flowgate.toml.5"].map(|page| root().join("dist/man").join(page));
    if has("mandoc") {
        let mut lint = Command::new("mandoc");
        // The lowest level asks whether other pages are installed here.
        printed(lint.args(["-Tlint", "-Wwarning"]).args(&pages));
    }
    if has("groff") {
        for page in &pages {
            let mut groff = Command::new("groff");
            groff.args(["-ww", "-mandoc", "-Tutf8"]).arg(page);
            let output = groff.output().expect("a child process");
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{}",
                text(&output.stderr)
            );
        }
    }
}

/// A configuration with one key in each table that nothing knows.
const UNKNOWN: &str = r#"
flowgate = 1
[admin]
flowgate = 1
[log]
flowgate = 1
[announce]
flowgate = 1
[[listener]]
address = "127.0.0.1:5300"
cluster = "dns"
flowgate = 1
[cluster.dns]
backends = [{ address = "10.0.0.1:53", flowgate = 1 }]
flowgate = 1
[[cluster.dns.quic_lb]]
flowgate = 1
[cluster.dns.health]
flowgate = 1
[cluster.dns.limits]
flowgate = 1
"#;

#[test]
fn the_man_page_explains_every_key_of_the_configuration() {
    let errors = flowgate_config::parse(UNKNOWN, "flowgate.toml").expect_err("unknown keys");
    let lists: Vec<_> = errors
        .iter()
        .filter(|problem| problem.fault == Fault::UnknownKey)
        .filter_map(|problem| problem.allowed.as_deref())
        .collect();
    assert_eq!(lists.len(), 10, "{errors}");
    let page = read("dist/man/flowgate.toml.5");
    let items: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Ic "))
        .flat_map(|keys| keys.split(" , "))
        .collect();
    for key in lists.iter().flat_map(|list| list.split(", ")) {
        assert!(items.contains(key), "{key} is not in flowgate.toml(5)");
    }
}

#[test]
fn the_man_page_knows_every_command() {
    let page = read("dist/man/flowgate.1");
    let help = printed(Command::new(FLOWGATE).arg("--help"));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<_> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|command| !command.is_empty() && *command != "help")
        .collect();
    assert!(commands.contains(&"run"), "{help}");
    for command in commands {
        let item = format!(".It Cm {command}");
        let is_item = |line: &str| line == item || line.starts_with(&format!("{item} "));
        assert!(page.lines().any(is_item), "{command} is not in flowgate(1)");
    }
}

#[test]
fn the_guide_explains_every_reason() {
    let guide = read("docs/operations.md");
    let reasons = flowgate_core::DropReason::ALL.iter().map(|reason| reason.as_str());
    let reasons = reasons.chain(flowgate_core::CloseReason::ALL.iter().map(|r| r.as_str()));
    for reason in reasons {
        assert!(guide.contains(&format!("| `{reason}`")), "{reason} is not in docs/operations.md");
    }
}

/// A process of a service manager, killed when dropped.
struct Service {
    child: Child,
    notifications: UnixDatagram,
}

impl Service {
    /// Runs `flowgate run` as systemd would with `listener` as its only socket.
    fn start(scratch: &Scratch, config: &str, listener: UdpSocket) -> Self {
        let place = scratch.path().join("notify");
        let notifications = UnixDatagram::bind(&place).expect("a socket");
        notifications.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let file = scratch.path().join("flowgate.toml");
        std::fs::write(&file, config).expect("a file");
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh", FLOWGATE, "run"])
            .arg(&file)
            .env("NOTIFY_SOCKET", &place)
            .env("WATCHDOG_USEC", "200000")
            .env_remove("WATCHDOG_PID")
            .env("RUNTIME_DIRECTORY", scratch.path())
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stderr(Stdio::null())
            .spawn()
            .expect("a child process");
        Self { child, notifications }
    }

    /// What it says next, but for signs of life unless they are asked for.
    #[track_caller]
    fn says(&self, expected: &str) {
        let mut message = [0; 1024];
        loop {
            let length = match self.notifications.recv(&mut message) {
                // Another test's child has ended.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                outcome => outcome.expect(expected),
            };
            let message = text(&message[..length]);
            if message.starts_with(expected) {
                return;
            }
            assert_eq!(message, "WATCHDOG=1\n", "in place of {expected:?}");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Long enough for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_service_manager_gives_the_listener_and_hears_how_far_the_process_is() {
    let udp = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    };
    let (client, listener, backend) = (udp(), udp(), udp());
    let address = listener.local_addr().expect("an address");
    let config = format!(
        "[[listener]]\naddress = \"{address}\"\ncluster = \"c\"\n[cluster.c]\nbackends = [\"{}\"]\n\
         responses = 1\n",
        backend.local_addr().expect("an address")
    );
    // Before anybody runs: it waits in the socket of the service manager.
    client.send_to(b"early", address).expect("sent");
    let scratch = Scratch::new("service");
    let mut service = Service::start(&scratch, &config, listener);
    service.says("READY=1\n");

    let mut bytes = [0; 16];
    let (length, flowgate) = backend.recv_from(&mut bytes).expect("the early datagram");
    assert_eq!(&bytes[..length], b"early");
    backend.send_to(b"answer", flowgate).expect("sent");
    let (length, from) = client.recv_from(&mut bytes).expect("the answer");
    assert_eq!((&bytes[..length], from), (&b"answer"[..], address));

    service.says("WATCHDOG=1\n");
    printed(Command::new(FLOWGATE).arg("reload").env("RUNTIME_DIRECTORY", scratch.path()));
    service.says("RELOADING=1\nMONOTONIC_USEC=");
    service.says("READY=1\n");
    kill(Pid::from_raw(service.child.id() as i32), Signal::SIGTERM).expect("it runs");
    service.says("STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\n");
    assert!(service.child.wait().expect("a child").success());
}
