//! QUIC clients that go on from another address, with servers whose connection ids name them
//! (QUIC-LB), as quinn makes them.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use flowgate_quic_lb::quinn::Generator;
use flowgate_quic_lb::{QuicLbConfig, ServerId};
use flowgate_tests::process::Process;
use flowgate_tests::scratch::Scratch;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};

use crate::FLOWGATE;

const NAME: &str = "moved.flowgate.test";
const SERVERS: usize = 3;
const SERVER_ID: usize = 8;

/// More than any answer takes that comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer that has not come by then is taken for lost, where some are to be lost.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);

/// How servers name themselves in their ids.
#[derive(Clone, Copy)]
pub(crate) struct Naming {
    pub(crate) nonce: usize,
    pub(crate) is_encrypted: bool,
    /// Whether the balancer is told how to read them.
    pub(crate) is_read: bool,
}

/// Has so many clients connect, move to other addresses with other ids, and ask again. How many
/// found their connections gone.
pub(crate) async fn lost(naming: Naming, clients: u8) -> usize {
    let key = [0x5A; 16];
    let config = QuicLbConfig::new(0, SERVER_ID, naming.nonce).unwrap();
    let config = if naming.is_encrypted { config.with_key(&key) } else { config };
    let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let private = certified.signing_key.serialize_der();
    let servers: Vec<_> = (0..SERVERS)
        .map(|number| server(number, &config, certificate.clone(), private.clone()))
        .collect();
    let scratch = Scratch::new("moved");
    let (_flowgate, address) = balancer(naming, &key, &servers, &scratch);

    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let trust = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    let patience = if naming.is_read { PATIENCE } else { SHORT_PATIENCE };
    let moved = (0..clients).map(|number| moved(number, address, trust.clone(), patience));
    let moved: Vec<_> = moved.map(tokio::spawn).collect();
    let mut lost = 0;
    for client in moved {
        lost += usize::from(!client.await.unwrap());
    }
    lost
}

/// A server that answers each question with its number.
fn server(
    number: usize,
    config: &QuicLbConfig,
    certificate: CertificateDer<'static>,
    private: Vec<u8>,
) -> SocketAddr {
    let generator = Generator::new(config.clone(), server_id(number)).unwrap();
    let mut endpoint = EndpointConfig::default();
    endpoint.cid_generator(move || Box::new(generator.clone()));
    let private = PrivatePkcs8KeyDer::from(private);
    let tls = ServerConfig::with_single_cert(vec![certificate], private.into()).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(endpoint, Some(tls), socket, runtime).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((mut answer, mut question)) = connection.accept_bi().await {
                    let _ = question.read_to_end(16).await;
                    let _ = answer.write_all(&[number as u8]).await;
                    let _ = answer.finish();
                }
            });
        }
    });
    address
}

fn server_id(number: usize) -> ServerId {
    let mut id = [0; SERVER_ID];
    id[SERVER_ID - 1] = number as u8 + 1;
    ServerId::new(&id).unwrap()
}

fn balancer(
    naming: Naming,
    key: &[u8; 16],
    servers: &[SocketAddr],
    scratch: &Scratch,
) -> (Process, SocketAddr) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut backends = String::new();
    for (number, address) in servers.iter().enumerate() {
        let id = hex(server_id(number).as_ref());
        let _ = write!(backends, "{{ address = \"{address}\", server_id = \"{id}\" }}, ");
    }
    let mut text = String::from(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n\
         [cluster.web]\nbalance = \"rendezvous\"\n",
    );
    if naming.is_read {
        let _ =
            write!(text, "affinity = \"quic\"\nbackends = [{backends}]\n[[cluster.web.quic_lb]]\n");
        let nonce = naming.nonce;
        let _ =
            writeln!(text, "rotation = 0\nserver_id_length = {SERVER_ID}\nnonce_length = {nonce}");
        if naming.is_encrypted {
            let file = scratch.path().join("quic-lb.key");
            fs::write(&file, hex(key)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let _ = writeln!(text, "key_file = {file:?}");
        }
    } else {
        let addresses: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
        let _ = writeln!(text, "backends = {addresses:?}");
    }
    let mut flowgate = Process::run(FLOWGATE, &text);
    let address = flowgate.address();
    (flowgate, address)
}

/// Whether a client that has moved is still answered, and by the server that it had.
async fn moved(number: u8, to: SocketAddr, trust: ClientConfig, patience: Duration) -> bool {
    let bind = |subnet: u8| UdpSocket::bind((format!("127.9.{subnet}.{}", number + 1), 0)).unwrap();
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint = Endpoint::new(EndpointConfig::default(), None, bind(1), runtime).unwrap();
    endpoint.set_default_client_config(trust);
    let connection = endpoint.connect(to, NAME).unwrap().await.unwrap();
    let before = ask(&connection).await.expect("an answer before it moves");
    endpoint.rebind(bind(2)).unwrap();
    match tokio::time::timeout(patience, ask(&connection)).await {
        Ok(Some(after)) => {
            assert_eq!(after, before, "another server answers");
            true
        }
        _ => false,
    }
}

async fn ask(connection: &Connection) -> Option<u8> {
    let (mut question, mut answer) = connection.open_bi().await.ok()?;
    question.write_all(b"who?").await.ok()?;
    question.finish().ok()?;
    answer.read_to_end(1).await.ok()?.first().copied()
}
