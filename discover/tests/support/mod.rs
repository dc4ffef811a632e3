//! What the tests of sources share: a folder, a file that comes to say something, and a server that
//! answers as it is told.

#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowgate_discover::{BackendsFile, Sets, publish};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a test waits for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fg-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A source that is followed, and the file that it is written to.
pub struct Followed {
    pub file: PathBuf,
    tasks: [JoinHandle<()>; 2],
}

impl Followed {
    pub fn start<F>(folder: &Folder, follow: impl FnOnce(Sets) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let path = folder.0.join("backends.json");
        let (sets, receiver) = watch::channel(None);
        let following = tokio::spawn(follow(sets));
        let file = BackendsFile::new(&path, false);
        let publishing = tokio::spawn(async move {
            publish(receiver, &file, Duration::from_millis(10), false).await.unwrap();
        });
        Self { file: path, tasks: [following, publishing] }
    }

    /// Waits until the file says just these, a draining one as `10.0.0.1:53 drain`.
    pub async fn says(&self, expected: &[&str]) {
        let expected: BTreeSet<_> = expected.iter().map(|text| (*text).to_owned()).collect();
        let said = || read(&self.file) == Some(expected.clone());
        eventually(said, || format!("{expected:?}, the file says {:?}", read(&self.file))).await;
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub async fn eventually(is_so: impl Fn() -> bool, what: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it never came: {}", what());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a file says; nothing if it is not there. Half a file is a failure.
pub fn read(path: &Path) -> Option<BTreeSet<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let groups: serde_json::Value = serde_json::from_str(&text).expect("whole files only");
    let mut found = BTreeSet::new();
    for group in groups.as_array().unwrap() {
        let labels = group["labels"].as_object().unwrap();
        let labels: String = labels
            .iter()
            .map(|(name, value)| match value.as_str().unwrap() {
                "true" => format!(" {name}"),
                value => format!(" {name}={value}"),
            })
            .collect();
        let targets = group["targets"].as_array().unwrap().iter();
        found.extend(targets.map(|target| format!("{}{labels}", target.as_str().unwrap())));
    }
    Some(found)
}

/// A request, as far as the tests care.
pub struct Asked {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
}

impl Asked {
    /// A part of the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Where an answer is written.
pub struct Answering(pub TcpStream);

impl Answering {
    pub async fn json(mut self, status: u16, headers: &str, body: &serde_json::Value) {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let _ = self.0.write_all(format!("{head}{body}").as_bytes()).await;
        let _ = self.0.shutdown().await;
    }

    /// Begins an answer that goes on until it is dropped.
    pub async fn begin(&mut self) {
        let head = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
        let _ = self.0.write_all(head.as_bytes()).await;
    }

    pub async fn line(&mut self, message: &serde_json::Value) {
        let _ = self.0.write_all(format!("{message}\n").as_bytes()).await;
    }
}

/// A server that answers each request, on a connection of its own, as `answer` does.
pub async fn serve<F>(
    answer: impl Fn(Asked, Answering) -> F + Send + Sync + 'static,
) -> (SocketAddr, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                if let Some(asked) = read_request(&mut stream).await {
                    answer(asked, Answering(stream.into_inner())).await;
                }
            });
        }
    });
    (address, serving)
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { method, path, body })
}
