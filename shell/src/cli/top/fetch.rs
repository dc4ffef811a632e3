//! Asks how things stand, again and again, on a thread of its own: a Flowgate that does not answer
//! keeps no key waiting.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use crate::admin::client::{self, ClientError};
use crate::admin::escape::escaped;
use crate::admin::request::{Request, Response};
use crate::admin::status::StatusDocument;
use crate::cli::Failure;

/// From one answer to the next question.
const PERIOD: Duration = Duration::from_secs(1);

/// From the first answer to the second question, since one document has no rates.
const FIRST_PERIOD: Duration = Duration::from_millis(300);

/// How long an answer may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// What came: a document, or why there is none.
pub(super) type Answer = Result<StatusDocument, String>;

/// Asks once, and from then on every second until nobody listens.
///
/// # Errors
///
/// When the first question has no answer, or a thread cannot be started.
pub(super) fn start(path: PathBuf) -> Result<(StatusDocument, Receiver<Answer>), Failure> {
    let first = ask(&path)?.map_err(Failure)?;
    let (sender, receiver) = mpsc::channel();
    let go_on = move || {
        let mut period = FIRST_PERIOD;
        loop {
            std::thread::sleep(period);
            let answer = ask(&path).unwrap_or_else(|error| Err(error.to_string()));
            if sender.send(answer).is_err() {
                return;
            }
            period = PERIOD;
        }
    };
    std::thread::Builder::new().name("fetch".into()).spawn(go_on)?;
    Ok((first, receiver))
}

fn ask(path: &Path) -> Result<Answer, ClientError> {
    Ok(match client::request(path, &Request::Status, REPLY_TIMEOUT)? {
        Response::Status(status) => Ok(status),
        Response::Refused { reasons } => Err(escaped(&reasons.join("; "))),
        _ => Err("the answer is not one to this question".to_owned()),
    })
}
