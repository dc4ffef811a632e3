//! `[[listener.route]]`: some clients of a listener are served by another cluster.

use std::net::SocketAddr;

use flowgate_tests::e2e::Peer;
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::skip::lacks;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn config(routes: &str, all: &Peer, inside: &Peer, workers: u16) -> String {
    format!(
        "workers = {workers}\n[[listener]]\nname = \"dns\"\naddress = \"127.0.0.1:0\"\ncluster = \"all\"\n{routes}\n\
         [cluster.all]\nbackends = [\"{}\"]\n[cluster.inside]\nbackends = [\"{}\"]\n",
        all.address(),
        inside.address()
    )
}

const ROUTE: &str = "[[listener.route]]\nfrom = [\"127.0.0.64/26\"]\ncluster = \"inside\"\n";

#[test]
fn the_network_of_a_client_decides_about_its_cluster() {
    if lacks("upgrades") {
        return;
    }
    for workers in [1, 2] {
        let (all, inside) = (Peer::v4(), Peer::v4());
        let mut flowgate = Process::run(FLOWGATE, &config(ROUTE, &all, &inside, workers));
        let to = flowgate.address();
        let outsiders: Vec<Peer> = (0..4).map(|_| Peer::bind("127.0.0.1:0")).collect();
        let insiders: Vec<Peer> = (0..4).map(|_| Peer::bind("127.0.0.65:0")).collect();
        let ask_all = || -> Vec<SocketAddr> {
            let outside = outsiders.iter().map(|client| client.is_served_by(to, &all));
            let inside = insiders.iter().map(|client| client.is_served_by(to, &inside));
            outside.chain(inside).collect()
        };
        let before = ask_all();
        assert_eq!(ask_all(), before);
        let figures = |flowgate: &Process, name: &str| {
            let status = flowgate.ask_json(&["status"]);
            let listeners = status["listeners"].as_array().expect("listeners").clone();
            let its = listeners.into_iter().find(|l| l["name"] == name).expect("it is there");
            let received = its["to_backend"]["received"]["datagrams"].as_u64().expect("a number");
            (
                its["cluster"].as_str().expect("a name").to_owned(),
                its["flows_active"].as_u64(),
                received,
            )
        };
        assert_eq!(figures(&flowgate, "dns"), ("all".to_owned(), Some(4), 8));
        assert_eq!(figures(&flowgate, "dns/inside"), ("inside".to_owned(), Some(4), 8));

        // A process that takes over goes on with the flows of both.
        flowgate.upgrade(&[]);
        assert_eq!(ask_all(), before);
        assert_eq!(figures(&flowgate, "dns/inside").2, 12);

        // A reload that changes something else keeps them too.
        let slower = config(ROUTE, &all, &inside, workers)
            .replace("[cluster.inside]", "[cluster.inside]\nidle_timeout = \"9s\"");
        flowgate.reload(&slower);
        assert_eq!(ask_all(), before);
    }
}

#[test]
fn a_reload_adds_changes_and_takes_away_routes() {
    let (all, inside) = (Peer::v4(), Peer::v4());
    let mut flowgate = Process::run(FLOWGATE, &config("", &all, &inside, 1));
    let to = flowgate.address();
    let client = Peer::bind("127.0.0.65:0");
    client.is_served_by(to, &all);
    flowgate.reload(&config(ROUTE, &all, &inside, 1));
    client.is_served_by(to, &inside);
    // The first one counts.
    let first = "[[listener.route]]\nfrom = [\"127.0.0.65\", \"::1\"]\ncluster = \"all\"\n";
    flowgate.reload(&config(&format!("{first}{ROUTE}"), &all, &inside, 1));
    client.is_served_by(to, &all);
    Peer::bind("127.0.0.66:0").is_served_by(to, &inside);
    flowgate.reload(&config("", &all, &inside, 1));
    Peer::bind("127.0.0.66:0").is_served_by(to, &all);
}

#[test]
fn explain_and_check_know_routes() {
    let (all, inside) = (Peer::v4(), Peer::v4());
    let toml = config(ROUTE, &all, &inside, 1)
        .replace("127.0.0.1:0\"\ncluster", "127.0.0.1:5300\"\ncluster");
    let file = ConfigFile::new(&toml);
    let said = |client: &str| {
        let output = output(FLOWGATE, &["explain", file.path(), client]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let routed = said("127.0.0.70");
    assert!(
        routed.contains("cluster \"inside\"") && routed.contains(&inside.address().to_string()),
        "{routed}"
    );
    assert_eq!(routed.matches("\nlistener ").count(), 1, "{routed}");
    assert!(said("127.0.0.2").contains(&all.address().to_string()));
    for (routes, key, why) in [
        (
            "[[listener.route]]\nfrom = []\ncluster = \"inside\"\n",
            "route[0].from",
            "one or more networks",
        ),
        ("[[listener.route]]\nfrom = [\"10.0.0.0/8\"]\n", "route[0].cluster", "missing"),
        (
            "[[listener.route]]\nfrom = [\"10.0.0.0/8\"]\ncluster = \"insid\"\n",
            "route[0].cluster",
            "inside",
        ),
        (
            "accept = \"connected\"\n[[listener.route]]\nfrom = [\"10.0.0.0/8\"]\ncluster = \"inside\"\n",
            "route",
            "a client's own socket",
        ),
    ] {
        let file = ConfigFile::new(&config(routes, &all, &inside, 1));
        let output = output(FLOWGATE, &["check", file.path()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1)
                && said.contains(&format!("listener[0].{key}: "))
                && said.contains(why),
            "{said}"
        );
    }
}
