use std::cell::RefCell;
use std::sync::mpsc;

use super::*;

/// What is told and what comes of it, where the first of several failures are these.
fn told(orders: &[bool], mut failures: u32) -> (Vec<bool>, Vec<Outcome>) {
    let (sender, inbox) = mpsc::channel();
    orders.iter().for_each(|order| sender.send(*order).unwrap());
    let sender = RefCell::new(Some(sender));
    let (told, outcomes) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let failures = RefCell::new(&mut failures);
    let tell = |announced| {
        told.borrow_mut().push(announced);
        if **failures.borrow() > 0 {
            **failures.borrow_mut() -= 1;
            return Err("away".to_owned());
        }
        // Nobody gives orders any more once one is carried out.
        sender.borrow_mut().take();
        Ok(())
    };
    carry_out(&inbox, tell, false, |outcome| outcomes.borrow_mut().push(outcome));
    (told.into_inner(), outcomes.into_inner())
}

#[test]
fn of_several_orders_the_last_one_is_carried_out() {
    let (told, outcomes) = told(&[true, false, true, false], 0);
    assert_eq!(told, [false]);
    assert_eq!(outcomes, [Outcome { announced: false, failure: None }]);
}

#[test]
fn what_fails_is_tried_again_and_told_each_time() {
    let (told, outcomes) = told(&[true], 2);
    assert_eq!(told, [true; 3]);
    let failed = Outcome { announced: true, failure: Some("away".to_owned()) };
    assert_eq!(outcomes, [failed.clone(), failed, Outcome { announced: true, failure: None }]);
}

#[test]
fn a_former_announcer_withdraws_before_another_announces() {
    let file = std::env::temp_dir().join(format!("flowgate-announced-{}", std::process::id()));
    let program = |name: &str| {
        let script = format!("echo {name} $1 >> {}", file.display());
        AnnounceBy::Command(vec!["sh".into(), "-c".into(), script, "sh".into()])
    };
    let (sender, outcomes) = mpsc::channel();
    let telling = |sender: &Sender<Outcome>| {
        let sender = sender.clone();
        move |outcome| sender.send(outcome).unwrap()
    };
    let old = Announcer::start(program("old"), None, telling(&sender)).unwrap();
    old.order(true);
    assert_eq!(outcomes.recv().unwrap(), Outcome { announced: true, failure: None });
    let new = Announcer::start(program("new"), Some(old), telling(&sender)).unwrap();
    new.order(true);
    for announced in [false, true] {
        assert_eq!(outcomes.recv().unwrap(), Outcome { announced, failure: None });
    }
    new.finish(COMMAND_TIMEOUT);
    let told = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(told, "old announce\nold withdraw\nnew announce\n");
}

#[test]
fn a_program_is_run_with_the_verb_and_its_failure_is_told() {
    let run_in_shell =
        |script: &str| run(&["sh".into(), "-c".into(), script.into(), "sh".into()], "announce");
    assert_eq!(run_in_shell("test \"$1\" = announce"), Ok(()));
    assert!(run_in_shell("exit 3").unwrap_err().contains("exit status: 3"));
    let error = run(&["/nonexistent/program".into()], "withdraw").unwrap_err();
    assert!(error.starts_with("/nonexistent/program: "), "{error}");
}
