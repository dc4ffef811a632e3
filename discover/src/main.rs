//! `flowgate-discover`: writes the files of backends that a balancer watches.

#![forbid(unsafe_code)]
// What a build without some of the sources does not use, it still reads from the command line.
#![cfg_attr(
    not(all(feature = "kubernetes", feature = "etcd", feature = "consul")),
    allow(dead_code)
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use flowgate_discover::{BackendsFile, Sets, publish};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Writes who serves, as Kubernetes, etcd or Consul know it, to files that Flowgate watches
/// (`backends_from = { file = FILE }`).
#[derive(Parser)]
#[command(name = "flowgate-discover", version)]
struct Cli {
    #[command(subcommand)]
    source: Source,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct How {
    /// Write the first set, then exit: for what has to be there before a balancer starts
    #[arg(long, global = true)]
    once: bool,
    /// Let an empty set replace one that is not
    #[arg(long, global = true)]
    allow_empty: bool,
    /// How long changes are gathered before they are written
    #[arg(long, global = true, default_value = "200ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    pause: Duration,
}

#[derive(Subcommand)]
enum Source {
    /// Endpoint slices of services
    Kubernetes {
        /// Where the services are; default: where this runs
        #[arg(long)]
        namespace: Option<String>,
        /// Which service goes to which file; a port by its name or number
        #[arg(required = true, value_name = "SERVICE[:PORT]=FILE")]
        services: Vec<Pair>,
    },
    /// Keys below a prefix, each an address or an object
    Etcd {
        /// A server; several to go on with another when one is away
        #[arg(long = "server", value_name = "URL", default_value = "http://127.0.0.1:2379")]
        servers: Vec<String>,
        #[command(flatten)]
        tls: TlsFiles,
        /// Which keys go to which file
        #[arg(required = true, value_name = "PREFIX=FILE")]
        prefixes: Vec<Pair>,
    },
    /// Health of services; CONSUL_HTTP_TOKEN is sent if it is set
    Consul {
        /// The agent
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8500")]
        server: String,
        /// Only instances that have this tag
        #[arg(long)]
        tag: Option<String>,
        #[command(flatten)]
        tls: TlsFiles,
        /// Which service goes to which file
        #[arg(required = true, value_name = "SERVICE=FILE")]
        services: Vec<Pair>,
    },
}

/// For servers at https addresses.
#[derive(Args, Clone)]
struct TlsFiles {
    /// Who signs the servers' certificates, as PEM; default: whom the system trusts
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Our certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The certificate's key, as PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

/// What is followed, and the file that it goes to.
#[derive(Clone)]
struct Pair {
    what: String,
    file: PathBuf,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((what, file)) if !what.is_empty() && !file.is_empty() => {
                Ok(Self { what: what.to_owned(), file: file.into() })
            }
            _ => {
                Err("allowed: what to follow and a file, such as dns=/run/flowgate/dns.json".into())
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    let outcome = tokio::select! {
        outcome = run(cli) => outcome,
        () = told_to_stop() => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("flowgate-discover: {why}");
            ExitCode::FAILURE
        }
    }
}

/// By a console that is to end, or Windows with it.
#[cfg(windows)]
async fn told_to_stop() {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};

    match (ctrl_c(), ctrl_break(), ctrl_close(), ctrl_shutdown()) {
        (Ok(mut interrupt), Ok(mut stop), Ok(mut close), Ok(mut shutdown)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = stop.recv() => {}
                _ = close.recv() => {}
                _ = shutdown.recv() => {}
            }
        }
        // The event does what it does to every process.
        _ => std::future::pending().await,
    }
}

#[cfg(unix)]
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        // The signal does what it does to every process.
        Err(_) => std::future::pending().await,
    }
}

async fn run(cli: Cli) -> Result<(), String> {
    let mut writers = JoinSet::new();
    match cli.source {
        Source::Kubernetes { namespace, services } => {
            kubernetes(namespace, services, &cli.how, &mut writers).await?;
        }
        Source::Etcd { servers, tls, prefixes } => {
            etcd(servers, &tls, prefixes, &cli.how, &mut writers)?;
        }
        Source::Consul { server, tag, tls, services } => {
            consul(&server, tag.as_deref(), &tls, services, &cli.how, &mut writers)?;
        }
    }
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|error| error.to_string())??;
    }
    Ok(())
}

type Writers = JoinSet<Result<(), String>>;

/// Writes what `follow` sends to a file.
fn start<F>(writers: &mut Writers, how: &How, file: PathBuf, follow: impl FnOnce(Sets) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sets, receiver) = watch::channel(None);
    let following = follow(sets);
    let file = BackendsFile::new(file, how.allow_empty);
    let (pause, once) = (how.pause, how.once);
    writers.spawn(async move {
        tokio::select! {
            () = following => Err("the source has ended".to_owned()),
            outcome = publish(receiver, &file, pause, once) => outcome,
        }
    });
}

#[cfg(not(all(feature = "kubernetes", feature = "etcd", feature = "consul")))]
fn not_built(feature: &str) -> String {
    format!(
        "this one was built without {feature}; build one that has it: \
         cargo build --release -p flowgate-discover --features {feature}"
    )
}

#[cfg(feature = "kubernetes")]
async fn kubernetes(
    namespace: Option<String>,
    services: Vec<Pair>,
    how: &How,
    writers: &mut Writers,
) -> Result<(), String> {
    use flowgate_discover::kubernetes::{Service, client, follow};

    let client = client().await?;
    for pair in services {
        let (name, port) = match pair.what.split_once(':') {
            Some((name, port)) => (name.to_owned(), Some(port.to_owned())),
            None => (pair.what.clone(), None),
        };
        let service = Service { namespace: namespace.clone(), name, port };
        let client = client.clone();
        start(writers, how, pair.file, |sets| async move { follow(client, &service, &sets).await });
    }
    Ok(())
}

#[cfg(not(feature = "kubernetes"))]
async fn kubernetes(
    _: Option<String>,
    _: Vec<Pair>,
    _: &How,
    _: &mut Writers,
) -> Result<(), String> {
    Err(not_built("kubernetes"))
}

#[cfg(feature = "http")]
fn http(
    tls: &TlsFiles,
    headers: Vec<(&'static str, String)>,
) -> Result<flowgate_discover::http::Http, String> {
    let tls = flowgate_discover::http::Tls {
        ca: tls.ca.clone(),
        certificate: tls.cert.clone(),
        key: tls.key.clone(),
    };
    flowgate_discover::http::Http::new(&tls, headers).map_err(|error| error.to_string())
}

#[cfg(feature = "etcd")]
fn etcd(
    servers: Vec<String>,
    tls: &TlsFiles,
    prefixes: Vec<Pair>,
    how: &How,
    writers: &mut Writers,
) -> Result<(), String> {
    let http = http(tls, Vec::new())?;
    for pair in prefixes {
        let (http, servers) = (http.clone(), servers.clone());
        start(writers, how, pair.file, |sets| async move {
            flowgate_discover::etcd::follow(&http, &servers, &pair.what, &sets).await;
        });
    }
    Ok(())
}

#[cfg(not(feature = "etcd"))]
fn etcd(
    _: Vec<String>,
    _: &TlsFiles,
    _: Vec<Pair>,
    _: &How,
    _: &mut Writers,
) -> Result<(), String> {
    Err(not_built("etcd"))
}

#[cfg(feature = "consul")]
fn consul(
    server: &str,
    tag: Option<&str>,
    tls: &TlsFiles,
    services: Vec<Pair>,
    how: &How,
    writers: &mut Writers,
) -> Result<(), String> {
    let token = std::env::var("CONSUL_HTTP_TOKEN").ok().filter(|token| !token.is_empty());
    let http = http(tls, token.map(|token| ("x-consul-token", token)).into_iter().collect())?;
    for pair in services {
        let http = http.clone();
        let (server, tag) = (server.to_owned(), tag.map(str::to_owned));
        start(writers, how, pair.file, |sets| async move {
            let tag = tag.as_deref();
            flowgate_discover::consul::follow(&http, &server, &pair.what, tag, &sets).await;
        });
    }
    Ok(())
}

#[cfg(not(feature = "consul"))]
fn consul(
    _: &str,
    _: Option<&str>,
    _: &TlsFiles,
    _: Vec<Pair>,
    _: &How,
    _: &mut Writers,
) -> Result<(), String> {
    Err(not_built("consul"))
}
