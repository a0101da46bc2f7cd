//! A way to the servers that cuts connections at random: before a request has passed, after it has, before its answer
//! has, or in the middle of either. It also notes every answer that the servers gave, whether it arrived or not.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::support::Random;

/// What becomes of a request on its way, and how often of a hundred.
const FATES: [(Fate, usize); 6] = [
    (Fate::Answered, 40),
    (Fate::RequestLost, 8),
    (Fate::RequestCut, 7),
    (Fate::AnswerUnread, 15),
    (Fate::AnswerLost, 20),
    (Fate::AnswerCut, 10),
];

/// How often a stock SDK retries.
const SDK_RETRIES: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// It is answered.
    Answered,
    /// The server never hears of it.
    RequestLost,
    /// The server receives its beginning.
    RequestCut,
    /// The server receives all of it, and the connection breaks while it is at work.
    AnswerUnread,
    /// The server has answered, and the client hears nothing.
    AnswerLost,
    /// The client receives the beginning of the answer.
    AnswerCut,
}

/// What a server said to a request that it carried out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) is_replay: bool,
    pub(crate) body: Vec<u8>,
}

/// The way as all connections share it.
struct Way {
    /// A connection leads to any of them.
    servers: Mutex<Vec<SocketAddr>>,
    random: Mutex<Random>,
    /// How many requests met which fate.
    met: Mutex<BTreeMap<Fate, usize>>,
    /// What was said to each request, by its `X-Request-Id`.
    said: Mutex<HashMap<String, Vec<Said>>>,
}

pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) url: String,
    way: Arc<Way>,
    /// Ends with this value, with every connection.
    _runtime: Runtime,
}

impl Proxy {
    /// A way to servers that listen on these addresses.
    pub(crate) fn start(servers: Vec<SocketAddr>, random: Random) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let way = Arc::new(Way {
            servers: Mutex::new(servers),
            random: Mutex::new(random),
            met: Mutex::default(),
            said: Mutex::default(),
        });
        runtime.spawn(accept(listener, way.clone()));
        Self { url, way, _runtime: runtime }
    }

    /// From now on that server listens there.
    pub(crate) fn lead_to(&self, server: usize, address: SocketAddr) {
        self.way.servers.lock().unwrap()[server] = address;
    }

    /// Gives up what the servers said to the request of this id.
    pub(crate) fn take_said(&self, request_id: &str) -> Vec<Said> {
        self.way.said.lock().unwrap().remove(request_id).unwrap_or_default()
    }

    /// How many requests met which fate.
    pub(crate) fn met(&self) -> BTreeMap<Fate, usize> {
        self.way.met.lock().unwrap().clone()
    }
}

async fn accept(listener: TcpListener, way: Arc<Way>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        let way = way.clone();
        // How it ends is told by its end: both of its sockets are closed.
        connections.spawn(async move { connection(client, &way).await.is_ok() });
    }
}

/// Passes on requests and answers in turn until one of them meets its fate.
async fn connection(client: TcpStream, way: &Way) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(way.any_server()).await?;
    server.set_nodelay(true)?;
    let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
    loop {
        let request = Message::read(&mut client).await?;
        let fate = way.draw(&request);
        match fate {
            Fate::RequestLost => return Ok(()),
            Fate::RequestCut => return server.write_all(way.beginning(&request)).await,
            _ => server.write_all(&request.bytes).await?,
        }
        if fate == Fate::AnswerUnread {
            return Ok(());
        }
        let answer = Message::read(&mut server).await?;
        way.note(&request, &answer);
        match fate {
            Fate::AnswerLost => return Ok(()),
            Fate::AnswerCut => return client.write_all(way.beginning(&answer)).await,
            _ => client.write_all(&answer.bytes).await?,
        }
    }
}

impl Way {
    fn below(&self, end: usize) -> usize {
        usize::try_from(self.random.lock().unwrap().below(end as u64)).unwrap()
    }

    fn any_server(&self) -> SocketAddr {
        let servers = self.servers.lock().unwrap();
        servers[self.below(servers.len())]
    }

    fn draw(&self, request: &Message) -> Fate {
        let mut drawn = self.below(FATES.iter().map(|(_, weight)| weight).sum());
        let is_drawn = |(_, weight): &&(Fate, usize)| match drawn.checked_sub(*weight) {
            Some(left) => {
                drawn = left;
                false
            }
            None => true,
        };
        let mut fate = FATES.iter().find(is_drawn).unwrap().0;
        if let Some(retry) = request.header("x-stainless-retry-count") {
            fate = match fate {
                // A stock SDK gives up after its second retry; known by its body, a request is known for a short time only.
                _ if retry.parse().is_ok_and(|retry: u32| retry >= SDK_RETRIES) => Fate::Answered,
                // Only its own server knows that a request is at work; of one that its body names, there is no record yet
                // that another server could find (what remains, decision 0013).
                Fate::AnswerUnread if self.servers.lock().unwrap().len() > 1 => Fate::AnswerLost,
                fate => fate,
            };
        }
        *self.met.lock().unwrap().entry(fate).or_default() += 1;
        fate
    }

    /// Some of it, but not all.
    fn beginning<'a>(&self, message: &'a Message) -> &'a [u8] {
        &message.bytes[..1 + self.below(message.bytes.len() - 1)]
    }

    fn note(&self, request: &Message, answer: &Message) {
        let status = answer.status();
        if !(200..300).contains(&status) {
            return;
        }
        let said = Said {
            status,
            is_replay: answer.header("idempotent-replayed") == Some("true"),
            body: answer.bytes[answer.head_bytes..].to_vec(),
        };
        let request_id = request.header("x-request-id").unwrap().to_owned();
        self.said.lock().unwrap().entry(request_id).or_default().push(said);
    }
}

/// A request or an answer, whole.
struct Message {
    bytes: Vec<u8>,
    /// How many of them come before the body.
    head_bytes: usize,
}

impl Message {
    async fn read(from: &mut BufReader<TcpStream>) -> io::Result<Self> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            if from.read_until(b'\n', &mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut message = Self { head_bytes: bytes.len(), bytes };
        let length = message.header("content-length").map_or(0, |length| length.parse().unwrap());
        message.bytes.resize(message.head_bytes + length, 0);
        from.read_exact(&mut message.bytes[message.head_bytes..]).await?;
        Ok(message)
    }

    fn head(&self) -> &str {
        str::from_utf8(&self.bytes[..self.head_bytes]).unwrap()
    }

    fn status(&self) -> u16 {
        self.head().split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head().lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}
