use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flowgate_core::{BackendId, CloseReason};
use nix::fcntl::OFlag;

use super::*;

fn backend() -> SocketAddr {
    "10.0.0.1:53".parse().unwrap()
}

fn ended(number: u16) -> FlowRecord {
    let traffic = |datagrams, bytes| flowgate_core::counters::Traffic { datagrams, bytes };
    FlowRecord {
        client: ([192, 0, 2, 1], number).into(),
        backend: BackendId::new(0),
        backend_address: backend(),
        reason: CloseReason::Complete,
        to_backend: traffic(1, 20),
        to_client: traffic(2, 400),
        lasted_ns: 1_500_000_000,
        first_answer_ns: Some(250_000_000),
    }
}

fn file(name: &str) -> PathBuf {
    let directory = std::env::temp_dir();
    directory.join(format!("flowgate-flow-log-{}-{name}", std::process::id()))
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_flow_is_a_line_of_json_whatever_its_listener_is_called() {
    let path = file("line");
    let _ = std::fs::remove_file(&path);
    let log = FlowLogWriter::start(&FlowLogSink::File(path.clone()), Clock::start()).unwrap();
    log.logger().log(&"evil\n\u{1b}[31m\"".into(), &ended(7));
    drop(log);
    let [line] = &lines(&path)[..] else { panic!("one line") };
    assert_eq!(line["listener"], "evil\n\u{1b}[31m\"");
    assert_eq!(line["client"], "192.0.2.1:7");
    assert_eq!(line["backend"], "10.0.0.1:53");
    assert_eq!(line["reason"], "complete");
    assert_eq!((&line["datagrams_to_backend"], &line["bytes_to_client"]), (&1.into(), &400.into()));
    assert_eq!(line["duration_seconds"], 1.5);
    assert_eq!(line["first_reply_seconds"], 0.25);
    assert!(line["time"].as_f64().unwrap() > 1.7e9);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn after_the_file_was_moved_away_lines_go_to_a_new_one() {
    let (path, moved) = (file("rotated"), file("rotated.1"));
    let _ = std::fs::remove_file(&path);
    let log = FlowLogWriter::start(&FlowLogSink::File(path.clone()), Clock::start()).unwrap();
    let logger = log.logger();
    logger.log(&"dns".into(), &ended(1));
    log.reopen();
    // What is in the queue is written in order, so the first line is in the file by the time a
    // second reopening has been taken in.
    while std::fs::metadata(&path).unwrap().len() == 0 {
        std::thread::yield_now();
    }
    std::fs::rename(&path, &moved).unwrap();
    log.reopen();
    logger.log(&"dns".into(), &ended(2));
    drop(log);
    assert_eq!(lines(&moved)[0]["client"], "192.0.2.1:1");
    assert_eq!(lines(&path)[0]["client"], "192.0.2.1:2");
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&moved).unwrap();
}

#[test]
fn every_flow_is_written_or_counted_as_left_out() {
    let path = file("flood");
    let _ = std::fs::remove_file(&path);
    let log = FlowLogWriter::start(&FlowLogSink::File(path.clone()), Clock::start()).unwrap();
    let logger = log.logger();
    let flows = 3 * LINES_PER_SECOND;
    let name: Arc<str> = "dns".into();
    (0..flows).for_each(|number| logger.log(&name, &ended(number as u16)));
    drop(log);
    let lines = lines(&path);
    let left_out = |line: &serde_json::Value| line["flows_left_out"].as_u64();
    let written = lines.iter().filter(|line| left_out(line).is_none()).count() as u64;
    let missing: u64 = lines.iter().filter_map(left_out).sum();
    assert_eq!(written + missing, flows);
    assert!(missing > 0, "faster than the limit, and all were written");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_at_start() {
    let path = PathBuf::from("/nonexistent/directory/flows.log");
    assert!(FlowLogWriter::start(&FlowLogSink::File(path), Clock::start()).is_err());
}

#[test]
fn a_pipe_that_nobody_reads_is_an_error_and_one_that_is_read_no_more_holds_nobody_up() {
    let path = file("pipe");
    let _ = std::fs::remove_file(&path);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let destination = FlowLogSink::File(path.clone());
    let error = FlowLogWriter::start(&destination, Clock::start()).err().unwrap();
    assert_eq!(error.to_string(), "nobody reads this pipe");
    assert_eq!(files::advice(&error), "start the program that reads it first, or name a file");

    let nonblocking = OFlag::O_NONBLOCK.bits();
    let mut options = OpenOptions::new();
    let reader = options.read(true).custom_flags(nonblocking).open(&path).unwrap();
    let log = FlowLogWriter::start(&destination, Clock::start()).unwrap();
    let (logger, name): (_, Arc<str>) = (log.logger(), "dns".into());
    // More than pipe and queue hold.
    (0..3 * QUEUE).for_each(|number| logger.log(&name, &ended(number as u16)));
    log.reopen();
    let begun = Clock::start();
    drop(log);
    assert!(begun.uptime() < Duration::from_secs(20), "{:?}", begun.uptime());
    drop(reader);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_log_whose_reader_has_gone_goes_on_where_it_is_opened_again() {
    let path = file("gone");
    let _ = std::fs::remove_file(&path);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut options = OpenOptions::new();
    let nonblocking = OFlag::O_NONBLOCK.bits();
    let reader = options.read(true).custom_flags(nonblocking).open(&path).unwrap();
    let destination = FlowLogSink::File(path.clone());
    let log = FlowLogWriter::start(&destination, Clock::start()).unwrap();
    drop(reader);
    let (logger, name): (_, Arc<str>) = (log.logger(), "dns".into());
    // More than is kept until it is written.
    let flows = 100;
    (0..flows).for_each(|number| logger.log(&name, &ended(number)));
    std::fs::remove_file(&path).unwrap();
    log.reopen();
    logger.log(&name, &ended(flows));
    drop(log);
    let lines = lines(&path);
    let last = ended(flows).client.to_string();
    assert!(lines.iter().any(|line| line["client"] == *last), "{lines:?}");
    assert!(lines.iter().any(|line| line["flows_left_out"].as_u64() > Some(0)), "{lines:?}");
    std::fs::remove_file(&path).unwrap();
}
