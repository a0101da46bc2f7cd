//! A way to the server that loses messages: it reads PostgreSQL's protocol, and forwards it until
//! told otherwise.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How the statement begins that stores a batch of appends, and so commits.
const BATCH: &[u8] = b"with wanted as";
const COMMIT: &[u8] = b"commit\0";

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered.
    Answered,
    /// The server never hears of it, and the connection breaks.
    RequestLost,
    /// The server commits, and the connection breaks before it says so.
    AnswerLost,
    /// The server commits, and nothing is heard of the connection any more.
    Silence,
}

/// What happens on all connections.
struct Plan {
    server: SocketAddr,
    /// What becomes of each commit in so many.
    fate: Mutex<(Fate, usize)>,
    commits: AtomicUsize,
    /// Commits that the server made and nobody heard of.
    swallowed: AtomicUsize,
    /// Connections that were begun.
    begun: AtomicUsize,
}

/// The way is open for connections that begin now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Nothing passes, and nobody is told.
    Black,
}

pub(crate) struct Proxy {
    port: u16,
    plan: Arc<Plan>,
    way: watch::Sender<Way>,
    /// Ends with this value, with every connection.
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// A way to the server on `port`.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let plan = Arc::new(Plan {
            server: (Ipv4Addr::LOCALHOST, port).into(),
            fate: Mutex::new((Fate::Answered, 1)),
            commits: AtomicUsize::new(0),
            swallowed: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
        });
        let (way, _) = watch::channel(Way::Open);
        let own = listener.local_addr().unwrap().port();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, plan.clone(), way.subscribe()));
        Self { port: own, plan, way, _accepting: accepting }
    }

    /// The URL through this proxy of a database whose URL names the server's own port.
    pub(crate) fn url(&self, url: &str) -> String {
        let own = format!(":{}/", self.plan.server.port());
        assert!(url.contains(&own), "{url}");
        // What is encrypted cannot be read on its way.
        url.replace(&own, &format!(":{}/", self.port)) + "?sslmode=disable"
    }

    /// Lets one commit in `one_in` meet its fate.
    pub(crate) fn spoil(&self, fate: Fate, one_in: usize) {
        *self.plan.fate.lock().unwrap() = (fate, one_in);
    }

    /// Nothing passes any more, on any connection; new ones begin and hear nothing.
    pub(crate) fn go_black(&self) {
        self.way.send_replace(Way::Black);
    }

    /// Lets new connections pass; those that went black stay so.
    pub(crate) fn come_back(&self) {
        self.way.send_replace(Way::Open);
    }

    pub(crate) fn swallowed(&self) -> usize {
        self.plan.swallowed.load(Ordering::Relaxed)
    }

    pub(crate) fn begun(&self) -> usize {
        self.plan.begun.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, plan: Arc<Plan>, way: watch::Receiver<Way>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        plan.begun.fetch_add(1, Ordering::Relaxed);
        connections.spawn(connection(client, plan.clone(), way.clone()));
    }
}

async fn connection(client: TcpStream, plan: Arc<Plan>, mut way: watch::Receiver<Way>) {
    let Ok(server) = TcpStream::connect(plan.server).await else { return };
    server.set_nodelay(true).unwrap();
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let doomed = Mutex::new(None);
    let requests = Direction { from: client_read, to: server_write, plan: &plan, doomed: &doomed };
    let answers = Direction { from: server_read, to: client_write, plan: &plan, doomed: &doomed };
    let black = way.wait_for(|way| *way == Way::Black);
    // The sockets live as long as this: where one direction ends, both are closed; where it falls
    // silent, neither is.
    let (mut requests, mut answers) = (requests, answers);
    tokio::select! {
        biased;
        _ = black => {}
        _ = requests.forward_requests() => return,
        _ = answers.forward_answers() => return,
    }
    std::future::pending().await
}

/// One direction of a connection; ends when the connection must.
struct Direction<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    plan: &'a Plan,
    /// The fate of the commit that is to be answered next.
    doomed: &'a Mutex<Option<Fate>>,
}

impl Direction<'_> {
    async fn forward_requests(&mut self) -> std::io::Result<()> {
        // The first message has no kind: its length comes first.
        let bytes = self.from.read_u32().await?;
        let mut first = bytes.to_be_bytes().to_vec();
        first.resize(bytes as usize, 0);
        self.from.read_exact(&mut first[4..]).await?;
        self.to.write_all(&first).await?;
        let mut batches = HashSet::new();
        loop {
            let message = self.receive().await?;
            let commits = match message.kind() {
                // Parse: the statement's name, its text.
                b'P' => {
                    let (name, text) = message.two_names();
                    match text.starts_with(BATCH) {
                        true => batches.insert(name.to_vec()),
                        false => batches.remove(name),
                    };
                    false
                }
                // Bind: the portal's name, the statement's.
                b'B' => batches.contains(message.two_names().1),
                b'Q' => message.body() == COMMIT,
                _ => false,
            };
            if commits {
                let fate = self.draw();
                if fate == Fate::RequestLost {
                    return Ok(());
                }
                *self.doomed.lock().unwrap() = (fate != Fate::Answered).then_some(fate);
            }
            self.to.write_all(&message.0).await?;
        }
    }

    async fn forward_answers(&mut self) -> std::io::Result<()> {
        let mut failed = false;
        loop {
            let message = self.receive().await?;
            let Some(fate) = *self.doomed.lock().unwrap() else {
                self.to.write_all(&message.0).await?;
                continue;
            };
            match message.kind() {
                b'E' => failed = true,
                // ReadyForQuery: the commit is done.
                b'Z' => {
                    self.plan.swallowed.fetch_add(usize::from(!failed), Ordering::Relaxed);
                    if fate == Fate::Silence {
                        std::future::pending::<()>().await;
                    }
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    fn draw(&self) -> Fate {
        let (fate, one_in) = *self.plan.fate.lock().unwrap();
        match self.plan.commits.fetch_add(1, Ordering::Relaxed) % one_in {
            0 => fate,
            _ => Fate::Answered,
        }
    }

    async fn receive(&mut self) -> std::io::Result<Message> {
        let kind = self.from.read_u8().await?;
        let bytes = self.from.read_u32().await?;
        let mut message = vec![kind];
        message.extend(bytes.to_be_bytes());
        message.resize(1 + bytes as usize, 0);
        self.from.read_exact(&mut message[5..]).await?;
        Ok(Message(message))
    }
}

/// A message: its kind, its length, and what it says.
struct Message(Vec<u8>);

impl Message {
    fn kind(&self) -> u8 {
        self.0[0]
    }

    fn body(&self) -> &[u8] {
        &self.0[5..]
    }

    /// The two texts that a message begins with.
    fn two_names(&self) -> (&[u8], &[u8]) {
        let mut names = self.body().split(|byte| *byte == 0);
        (names.next().unwrap(), names.next().unwrap())
    }
}
