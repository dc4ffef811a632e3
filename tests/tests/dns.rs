//! The first thing a user does: five lines of TOML, two real DNS servers, and `dig`.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use flowgate_tests::process::Process;
use flowgate_tests::resolver::{Resolver, dig};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

const NAME: &str = "a.flowgate.test";

#[test]
fn two_resolvers_answer_dig_through_five_lines_of_configuration() {
    let answers = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let servers = answers.map(|answer| Resolver::start(&[(NAME.to_owned(), answer)]));
    let [Some(one), Some(two)] = servers else { return };

    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"resolvers\"\n\
         [cluster.resolvers]\nbackends = [\"{}\", \"{}\"]\n",
        one.address(),
        two.address()
    );
    assert_eq!(config.lines().count(), 5);
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();

    // Rendezvous hashing sends each client address to one resolver, always the same.
    let mut seen = HashSet::new();
    for host in 1..=32 {
        let client = format!("127.0.2.{host}");
        let ask = || dig(address, &["-b", &client, NAME]).expect("dig");
        let answer = ask();
        assert!(answers.iter().any(|known| answer == [known.to_string()]), "{answer:?}");
        if host <= 3 {
            assert_eq!(ask(), answer, "{client} was moved");
        }
        seen.insert(answer);
        if seen.len() == 2 && host >= 3 {
            break;
        }
    }
    assert_eq!(seen.len(), 2, "one resolver got all clients");
}
