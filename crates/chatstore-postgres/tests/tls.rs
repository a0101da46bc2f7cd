//! Connecting to a real server: what each `sslmode` accepts, and the sentence for each refusal.
//!
//! The server of the tests is built without TLS, so a proxy before it speaks TLS in its name.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use chatstore_postgres::migration_status;
use chatstore_postgres::testing::{Cluster, Settings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The length and the code with which a client asks whether the server speaks TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const PASSWORD: &str = "n0t-for-logs@/?";
const PASSWORD_IN_URL: &str = "n0t-for-logs%40%2F%3F";

/// A server that listens on TCP, without TLS. The role `asked` is asked for its password.
fn server() -> &'static Cluster {
    static SERVER: OnceLock<(Cluster, TempDir)> = OnceLock::new();
    let (server, _) = SERVER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        let access = folder.path().join("pg_hba.conf");
        let lines = "local all all trust\nhost all asked 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
        std::fs::write(&access, lines).unwrap();
        let programs = std::env::var_os("TEST_POSTGRES_PROGRAMS");
        let programs = PathBuf::from(programs.expect("TEST_POSTGRES_PROGRAMS is set by `cargo xtask test`"));
        let settings = Settings::fast().tcp().set("hba_file", access.to_str().unwrap());
        (Cluster::start(&programs, settings).unwrap(), folder)
    });
    server
}

/// The server may run as another user than the test.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Tries to connect; the error is a sentence.
async fn connect(url: &str) -> Result<(), String> {
    let tried = migration_status(url).await.map(drop).map_err(|error| error.to_string());
    if let Err(sentence) = &tried {
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(!sentence.contains("n0t-for"), "{sentence}");
    }
    tried
}

async fn refused(url: &str, parts: &[&str]) {
    let sentence = connect(url).await.expect_err(url);
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
}

/// Certificates of one authority, and the files that name them.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: tempfile::tempdir().unwrap() };
        authority.file("ca.pem", &authority.issuer.pem());
        authority
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The file with the authority's own certificate, behind one of another authority.
    fn root(&self) -> String {
        let other = Self::new();
        self.file("roots.pem", &format!("{}{}", other.issuer.pem(), self.issuer.pem()))
    }

    /// A certificate for a host, and its key.
    fn certificate(&self, host: &str) -> Identity {
        Identity::signed(CertificateParams::new(vec![host.to_owned()]).unwrap(), &self.issuer)
    }
}

/// A certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Identity {
    fn signed(params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        Self { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }
}

/// Shows a certificate whether or not its key belongs to it.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A server's end of TLS with this certificate and this key.
fn server_config(
    identity: &Identity,
    key: &KeyPair,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(der).unwrap();
    let shown = Shown(Arc::new(CertifiedKey::new(vec![identity.certificate.clone()], key)));
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown))
}

/// Speaks TLS before the server, and notes of each connection whether it did.
struct Proxy {
    port: u16,
    secured: Arc<Mutex<Vec<bool>>>,
}

impl Proxy {
    async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), secured: Arc::default() };
        let (acceptor, secured) = (TlsAcceptor::from(Arc::new(config)), proxy.secured.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(client, acceptor.clone(), secured.clone()));
            }
        });
        proxy
    }

    async fn with(identity: &Identity) -> Self {
        Self::start(server_config(identity, &identity.key, rustls::ALL_VERSIONS)).await
    }

    /// The URL with which it is reached, as `localhost`.
    fn url(&self, options: &str) -> String {
        format!("postgres://postgres@localhost:{}/postgres?{options}", self.port)
    }

    /// Whether the last connection was secured.
    fn secured(&self) -> bool {
        *self.secured.lock().unwrap().last().expect("there was a connection")
    }
}

/// One connection. What fails here, the client tells.
async fn serve(mut client: TcpStream, acceptor: TlsAcceptor, secured: Arc<Mutex<Vec<bool>>>) -> Option<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server().port())).await.ok()?;
    let mut first = [0];
    client.peek(&mut first).await.ok()?;
    // The first byte of a handshake: this client did not ask.
    let mut tls = first == [22];
    if !tls {
        let mut request = [0; 8];
        client.read_exact(&mut request).await.ok()?;
        tls = request == SSL_REQUEST;
        match tls {
            true => client.write_all(b"S").await.ok()?,
            false => server.write_all(&request).await.ok()?,
        }
    }
    secured.lock().unwrap().push(tls);
    if tls {
        let mut client = acceptor.accept(client).await.ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok()?;
    } else {
        copy_bidirectional(&mut client, &mut server).await.ok()?;
    }
    Some(())
}

#[tokio::test]
async fn without_tls_on_the_server_only_modes_that_do_not_demand_it_connect() {
    let url = format!("postgres://postgres@localhost:{}/postgres", server().port());
    connect(&url).await.unwrap();
    for mode in ["disable", "allow", "prefer"] {
        connect(&format!("{url}?sslmode={mode}")).await.unwrap();
    }
    let authority = Authority::new();
    let root = authority.root();
    for options in
        ["require".to_owned(), format!("verify-ca&sslrootcert={root}"), format!("verify-full&sslrootcert={root}")]
    {
        refused(&format!("{url}?sslmode={options}"), &["does not offer TLS", "sslmode=disable"]).await;
    }
}

#[tokio::test]
async fn a_socket_of_this_machine_needs_no_tls() {
    connect(&format!("{}?sslmode=require", server().url("postgres"))).await.unwrap();
}

#[tokio::test]
async fn every_mode_checks_what_libpq_checks() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (ca, other_ca) = (authority.root(), other.root());
    let right = Proxy::with(&authority.certificate("localhost")).await;
    let wrong = Proxy::with(&authority.certificate("db.example")).await;
    let unknown = ["certificate of an unknown authority", "sslrootcert="];
    let misnamed = ["certificate for another host", "db.example", "sslmode=verify-ca"];
    for proxy in [&right, &wrong] {
        connect(&proxy.url("sslmode=disable")).await.unwrap();
        assert!(!proxy.secured());
        for options in ["", "sslmode=allow", "sslmode=prefer", "sslmode=require"] {
            connect(&proxy.url(options)).await.unwrap();
            assert!(proxy.secured(), "{options}");
        }
        for mode in ["require", "verify-ca"] {
            connect(&proxy.url(&format!("sslmode={mode}&sslrootcert={ca}"))).await.unwrap();
            assert!(proxy.secured());
            refused(&proxy.url(&format!("sslmode={mode}&sslrootcert={other_ca}")), &unknown).await;
        }
        // The system's authorities did not sign it, or there are none.
        refused(&proxy.url("sslmode=verify-full"), &["sslrootcert="]).await;
        refused(&proxy.url("sslrootcert=system"), &["sslrootcert="]).await;
        refused(&proxy.url(&format!("sslmode=verify-full&sslrootcert={other_ca}")), &unknown).await;
    }
    connect(&right.url(&format!("sslmode=verify-full&sslrootcert={ca}"))).await.unwrap();
    refused(&wrong.url(&format!("sslmode=verify-full&sslrootcert={ca}")), &misnamed).await;
}

#[tokio::test]
async fn a_name_is_checked_also_when_its_address_is_given() {
    let authority = Authority::new();
    let proxy = Proxy::with(&authority.certificate("db.example")).await;
    let options = format!("hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}", authority.root());
    connect(&proxy.url(&options).replace("localhost", "db.example")).await.unwrap();
    refused(&proxy.url(&options), &["another host"]).await;
    let by_address = Proxy::with(&authority.certificate("127.0.0.1")).await;
    let options = format!("sslmode=verify-full&sslrootcert={}", authority.root());
    connect(&by_address.url(&options).replace("localhost", "127.0.0.1")).await.unwrap();
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_when_it_is_named_itself() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let own = Identity { certificate: certificate.der().clone(), pem: certificate.pem(), key };
    let file = authority.file("self.pem", &own.pem);
    let proxy = Proxy::with(&own).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        connect(&proxy.url(&format!("sslmode={mode}&sslrootcert={file}"))).await.unwrap();
        let other = authority.root();
        refused(&proxy.url(&format!("sslmode={mode}&sslrootcert={other}")), &["certificate"]).await;
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_where_it_is_checked() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = date_time_ymd(2020, 1, 1);
    let proxy = Proxy::with(&Identity::signed(params, &authority.issuer)).await;
    connect(&proxy.url("sslmode=require")).await.unwrap();
    let options = format!("sslmode=verify-ca&sslrootcert={}", authority.root());
    refused(&proxy.url(&options), &["cannot be trusted", "expired"]).await;
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused_in_every_mode() {
    let authority = Authority::new();
    let identity = authority.certificate("localhost");
    let stolen = KeyPair::generate().unwrap();
    for version in [&version::TLS12, &version::TLS13] {
        let honest = Proxy::start(server_config(&identity, &identity.key, &[version])).await;
        let thief = Proxy::start(server_config(&identity, &stolen, &[version])).await;
        for mode in ["prefer".to_owned(), "require".to_owned(), format!("verify-full&sslrootcert={}", authority.root())]
        {
            connect(&honest.url(&format!("sslmode={mode}"))).await.unwrap();
            refused(&thief.url(&format!("sslmode={mode}")), &["certificate"]).await;
        }
    }
}

#[tokio::test]
async fn a_client_shows_its_own_certificate() {
    let authority = Authority::new();
    let (server, own) = (authority.certificate("localhost"), authority.certificate("chatstore"));
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let key = PrivateKeyDer::try_from(server.key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.certificate.clone()], key)
        .unwrap();
    let proxy = Proxy::start(config).await;
    let certificate = authority.file("own.pem", &own.pem);
    let key = authority.file("own.key", &own.key.serialize_pem());
    connect(&proxy.url(&format!("sslmode=require&sslcert={certificate}&sslkey={key}"))).await.unwrap();
    connect(&proxy.url("sslmode=require")).await.unwrap_err();
    refused(&proxy.url(&format!("sslcert={certificate}")), &["both sslcert and sslkey"]).await;
    refused(&proxy.url(&format!("sslcert={key}&sslkey={key}")), &["sslcert", "no certificate"]).await;
}

#[tokio::test]
async fn tls_without_a_request_for_it_names_the_protocol() {
    let authority = Authority::new();
    let identity = authority.certificate("localhost");
    let mut config = server_config(&identity, &identity.key, rustls::ALL_VERSIONS);
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let proxy = Proxy::start(config).await;
    connect(&proxy.url("sslmode=require&sslnegotiation=direct")).await.unwrap();
    assert!(proxy.secured());
}

#[tokio::test]
async fn files_that_hold_no_certificate_are_named() {
    let authority = Authority::new();
    let (empty, url) =
        (authority.file("empty.pem", ""), format!("postgres://me@localhost:{}/postgres", server().port()));
    refused(&format!("{url}?sslmode=verify-full&sslrootcert={empty}"), &["empty.pem", "sslrootcert", "no certificate"])
        .await;
    refused(&format!("{url}?sslmode=require&sslrootcert=/nowhere.pem"), &["/nowhere.pem", "sslrootcert"]).await;
    // What is not looked at need not be there.
    connect(&server().tcp_url("postgres?sslmode=disable&sslrootcert=/nowhere.pem")).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_role_or_database_is_told_without_the_password() {
    let owner = server().url("postgres");
    let (client, connection) = tokio_postgres::connect(&owner, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("create role asked login password '{PASSWORD}'")).await.unwrap();
    let place = format!("127.0.0.1:{}", server().port());
    connect(&format!("postgres://asked:{PASSWORD_IN_URL}@{place}/postgres")).await.unwrap();
    connect(&format!("postgres://asked@{place}/postgres?password={PASSWORD_IN_URL}")).await.unwrap();
    let shown = format!("postgres://{place}/postgres refuses the user or the password");
    refused(&format!("postgres://asked:n0t-for-you@{place}/postgres"), &[&shown, "asked"]).await;
    refused(&format!("postgres://asked@{place}/postgres"), &["asks for a password"]).await;
    refused(&format!("postgres://nobody_here:n0t-for-you@{place}/postgres"), &["nobody_here", "correct the URL"]).await;
    refused(
        &server().tcp_url("absent"),
        &[&format!("postgres://{place}/absent does not exist"), "create the database"],
    )
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    let url = format!("postgres://me:n0t-for-you@127.0.0.1:{free}/chat");
    refused(&url, &[&format!("postgres://127.0.0.1:{free}/chat refuses connections"), "check host and port"]).await;
    refused(
        "postgres://me:n0t-for-you@nowhere.invalid/chat",
        &["postgres://nowhere.invalid:5432/chat", "name leads nowhere"],
    )
    .await;
    refused("postgres://me:n0t-for-you@%2Fnowhere/chat", &["postgres:///nowhere:5432/chat", "no socket"]).await;
}

#[tokio::test]
async fn the_next_host_is_tried() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    let hosts = format!("127.0.0.1:{free},127.0.0.1:{}", server().port());
    connect(&format!("postgres://postgres@{hosts}/postgres?target_session_attrs=read-write")).await.unwrap();
}
