//! The configurations that are shipped as examples: each is valid as it is.

use std::path::{Path, PathBuf};

const EXAMPLES: [&str; 8] = [
    "dns.toml",
    "game.toml",
    "quic.toml",
    "radius.toml",
    "sip.toml",
    "syslog.toml",
    "transparent.toml",
    "wireguard.toml",
];

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("dist")
}

/// The configuration in a file, which must draw no warning.
#[track_caller]
fn valid(path: &Path) -> flowgate_config::Config {
    let config = flowgate_config::load(path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, [], "{}", path.display());
    config
}

#[test]
fn there_is_an_example_for_each_use() {
    let folder = std::fs::read_dir(dist().join("examples")).expect("a folder");
    let names = folder.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> =
        names.map(|name| name.into_string().expect("a plain name")).collect();
    names.sort_unstable();
    assert_eq!(names, EXAMPLES);
}

#[test]
fn each_example_is_valid_and_draws_no_warning() {
    for name in EXAMPLES {
        let config = valid(&dist().join("examples").join(name));
        assert!(config.listeners.iter().all(|l| l.address.port() != 0), "{name}");
        // Nobody wants to learn from an example that leaves a dead server in service.
        let watched = config.clusters.iter().all(|cluster| cluster.health.is_some());
        assert!(watched, "{name}: a cluster without probes");
    }
}

#[test]
fn each_line_of_an_example_is_short_enough_to_be_read() {
    for name in EXAMPLES {
        let path = dist().join("examples").join(name);
        let text = std::fs::read_to_string(&path).expect("an example");
        let longest = text.lines().map(|line| line.chars().count()).max();
        let is_data = |line: &str| line.starts_with("send = ");
        let is_short = |line: &str| line.chars().count() <= 110 || is_data(line);
        assert!(text.lines().all(is_short), "{name}: {longest:?}");
    }
}

#[test]
fn the_configuration_that_a_package_installs_is_valid() {
    let config = valid(&dist().join("debian/flowgate.toml"));
    // It is there before anybody has thought about who may use it.
    assert!(config.listeners.iter().all(|listener| listener.address.ip().is_loopback()));
}

#[test]
fn the_configuration_of_the_image_is_reached_from_outside() {
    let config = flowgate_config::load(&dist().join("docker/flowgate.toml")).expect("it is valid");
    // That a page is open to others is said, and meant here.
    let warned: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(warned, ["admin.http"]);
    assert!(config.listeners.iter().all(|listener| listener.address.ip().is_unspecified()));
    let http = config.admin.http.expect("a page");
    assert!(http.ip().is_unspecified());
    // What the image declares is what its configuration opens.
    let image = std::fs::read_to_string(dist().join("docker/Dockerfile")).expect("a Dockerfile");
    for listener in &config.listeners {
        let exposed = format!("{}/udp", listener.address.port());
        assert!(image.lines().any(|line| line.starts_with("EXPOSE ") && line.contains(&exposed)));
        // Without this a user who is not root cannot open it.
        assert!(listener.address.port() >= 1024 || image.contains("cap_net_bind_service=+ep"));
    }
    assert!(image.contains(&format!("{}/tcp", http.port())));
    assert!(image.contains("COPY dist/docker/flowgate.toml /etc/flowgate/flowgate.toml"));
}

#[test]
fn where_nothing_answers_no_flows_are_kept() {
    let config = valid(&dist().join("examples/syslog.toml"));
    let modes = config.clusters.iter().map(|cluster| cluster.policy.mode);
    assert!(modes.eq([flowgate_core::config::Mode::OneWay]));
}

/// How many bytes the smallest question and the first answer to it have, where `amplification` holds
/// from the first datagram to the last.
#[test]
fn the_first_answer_passes_the_limit_on_amplification() {
    // A question for what a game server tells of itself, and the datagram that it fits into.
    let first = |name: &str| (name == "game.toml").then_some((25_u64, 1_400));
    for name in EXAMPLES {
        let config = valid(&dist().join("examples").join(name));
        for cluster in &config.clusters {
            let factor = u64::from(cluster.policy.limits.amplification);
            if factor == 0 {
                continue;
            }
            let (question, answer) = first(name).unwrap_or_else(|| panic!("{name}: {factor}"));
            assert!(question * factor >= answer, "{name}: {factor}");
        }
    }
}

#[test]
fn who_balances_dns_is_told_of_tcp() {
    let text = std::fs::read_to_string(dist().join("examples/dns.toml")).expect("an example");
    assert!(text.contains("53/TCP"));
}
