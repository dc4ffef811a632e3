//! HTTP as etcd and Consul speak it: JSON over connections that stay open.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// After how long without a word a connection's other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The longest answer that is read, and the longest line of one.
const MAX_LEN: usize = 64 << 20;

/// Whom to trust, and who we are.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// A PEM file of the authorities that sign servers' certificates. Default: the system's.
    pub ca: Option<PathBuf>,
    /// A PEM file of our certificate.
    pub certificate: Option<PathBuf>,
    /// A PEM file of its key.
    pub key: Option<PathBuf>,
}

/// Why there was no answer, or none that is of use.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Of certificates and keys.
    #[error("TLS: {0}")]
    Tls(String),
    /// The address is none.
    #[error("{0}")]
    Address(#[from] hyper::http::Error),
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is a refusal.
    #[error("the server answers {status}: {text}")]
    Refused {
        /// As a number.
        status: u16,
        /// The beginning of what it says.
        text: String,
    },
    /// The connection ended, or the answer is too long.
    #[error("the answer broke off: {0}")]
    BrokeOff(String),
    /// The answer took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The answer is not what was asked for.
    #[error("cannot make sense of the answer: {0}")]
    Senseless(#[from] serde_json::Error),
}

/// Asks servers.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    headers: Vec<(&'static str, String)>,
}

impl Http {
    /// Speaks `https` as `tls` says, and `http`. `headers` go with all that it asks.
    ///
    /// # Errors
    ///
    /// When the files of certificates cannot be read, or are none.
    pub fn new(tls: &Tls, headers: Vec<(&'static str, String)>) -> Result<Self, HttpError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(2));
        let config = tls_config(tls)?;
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let connector = builder.enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, headers })
    }

    /// Gets `url`. The answer has to be there, as JSON, within `timeout`.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub async fn get<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        timeout: Duration,
    ) -> Result<(T, hyper::HeaderMap), HttpError> {
        let asked = async {
            let answer = self.send(Request::get(url), Bytes::new()).await?;
            let headers = answer.headers().clone();
            Ok((serde_json::from_slice(&whole(answer).await?)?, headers))
        };
        within(timeout, asked).await
    }

    /// Posts JSON to `url`. The answer has to be there, as JSON, within `timeout`.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub async fn post<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        body: &serde_json::Value,
        timeout: Duration,
    ) -> Result<T, HttpError> {
        let asked = async {
            let answer = self.send(Request::post(url), body.to_string().into()).await?;
            Ok(serde_json::from_slice(&whole(answer).await?)?)
        };
        within(timeout, asked).await
    }

    /// Posts JSON to `url`, and reads the answer line by line as it comes.
    ///
    /// # Errors
    ///
    /// When there is no answer within `timeout`.
    pub async fn lines(
        &self,
        url: &str,
        body: &serde_json::Value,
        timeout: Duration,
    ) -> Result<Lines, HttpError> {
        let asked = self.send(Request::post(url), body.to_string().into());
        let answer = within(timeout, asked).await?;
        Ok(Lines { body: answer.into_body(), read: Vec::new(), searched: 0 })
    }

    async fn send(
        &self,
        mut request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let asked = self.client.request(request.body(Full::new(body))?).await;
        let answer = asked.map_err(|error| HttpError::Unreachable(chain(&error)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let text = whole(answer).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().chars().take(200).collect();
        Err(HttpError::Refused { status, text })
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    read: Vec<u8>,
    searched: usize,
}

impl Lines {
    /// The next line; `None` once the answer has ended. What is read of a line stays, where this is
    /// given up before the line has ended.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or the line has no end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, HttpError> {
        loop {
            if let Some(at) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(self.searched + at + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.read, rest)));
            }
            self.searched = self.read.len();
            if self.read.len() > MAX_LEN {
                return Err(HttpError::BrokeOff(format!("a line of more than {MAX_LEN} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.read.extend_from_slice(&frame.into_data().unwrap_or_default());
                }
                Some(Err(error)) => return Err(HttpError::BrokeOff(chain(&error))),
                None => return Ok(None),
            }
        }
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, HttpError> {
    let read = Limited::new(answer.into_body(), MAX_LEN).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|error| HttpError::BrokeOff(chain(error.as_ref())))
}

async fn within<T>(
    timeout: Duration,
    asked: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    tokio::time::timeout(timeout, asked).await.unwrap_or(Err(HttpError::TimedOut(timeout)))
}

/// What went wrong, with what it came from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn tls_config(tls: &Tls) -> Result<ClientConfig, HttpError> {
    let wrong = |what: String| HttpError::Tls(what);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let builder = match &tls.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|error| wrong(format!("{}: {error}", path.display())))?;
            }
            builder.with_root_certificates(roots)
        }
        // Who has none of them, as in a small snapshot, can still speak plain HTTP.
        None => match builder.clone().with_native_roots() {
            Ok(builder) => builder,
            Err(_) => builder.with_root_certificates(RootCertStore::empty()),
        },
    };
    match (&tls.certificate, &tls.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(path)) => {
            let key = PrivateKeyDer::from_pem_file(path)
                .map_err(|error| wrong(format!("{}: {error}", path.display())))?;
            let chain = certificates(certificate)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(error.to_string()))
        }
        _ => Err(wrong("a certificate and its key go together".to_owned())),
    }
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let wrong = |why: &dyn std::fmt::Display| HttpError::Tls(format!("{}: {why}", path.display()));
    let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
    if found.is_empty() {
        return Err(wrong(&"it holds no certificate"));
    }
    Ok(found)
}
