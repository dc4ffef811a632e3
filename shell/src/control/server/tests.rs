//! A worker that panics.

use std::sync::mpsc::channel;

use super::*;

const CONFIG: &str = "workers = 2\n[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n\
                      [cluster.test]\nbackends = [\"127.0.0.1:9\"]\n";

#[test]
fn a_worker_that_panics_says_so_and_nobody_waits_for_it() {
    let config = flowgate_config::parse(CONFIG, "test.toml").unwrap();
    let (sender, ends) = channel();
    let on_end = move |end| sender.send(end).unwrap();
    let mut server =
        Server::start(&config, Clock::start(), ServerOptions::default(), on_end).unwrap();
    assert_eq!(server.report().len(), 1);

    server.workers[0].command(Command::Panic);
    let end = ends.recv().unwrap();
    assert!(matches!(&end, WorkerEnd::Panicked(text) if text == "a bug that a test has planted"));
    let text = crate::control::supervisor::RunError::Worker(end).to_string();
    assert_eq!(
        text,
        "a worker panicked, which is a bug: a bug that a test has planted; stopping the process"
    );

    // The other one still answers, until it is stopped with the process.
    server.acknowledged();
    assert_eq!(server.report().len(), 1);
    server.stop();
    assert!(matches!(ends.recv().unwrap(), WorkerEnd::Done));
    server.join();
}
