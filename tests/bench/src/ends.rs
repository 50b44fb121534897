//! The two programs at the ends of the line: one answers requests for bytes, the other asks for them and notes when they came.
//!
//! They run in the stage's namespaces as processes of their own (`bench end …`). One protocol for all transports: a request is
//! its class (1 byte, 0 fill or 3 demand) and a length (8 bytes, little-endian); the answer is that many bytes, on the product's link
//! in frames of [`FRAME_BYTES`]. Times are CLOCK_MONOTONIC, which all processes of a machine share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use dedup::{BranchId, RealmId};
use dedup_transport::identity::{BranchKey, CertAndKey, RealmCa};
use dedup_transport::link::{Accepted, Class, Link, LinkClient, LinkServer, LinkTuning};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What is asked for at once, as the product's branch does.
const REQUEST_BYTES: u64 = 4 << 20;
/// Small, so that what has come is noted soon.
const FRAME_BYTES: usize = 64 * 1024;
/// Resolution of the record.
pub(crate) const BIN: Duration = Duration::from_millis(100);
/// What a guest waits for at once: a chunk.
const DEMAND_BYTES: u64 = 16 * 1024;
const DEMAND_EVERY: Duration = Duration::from_millis(100);
/// How many wait at a time. Each asks again when it has its answer.
const GUESTS: u32 = 2;
/// How often it is looked whether that is enough.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Both ends are ended by the bench; this is for the case that it cannot.
const DAY: Duration = Duration::from_secs(86_400);
/// How long a client tries to reach the server.
const DIAL: Duration = Duration::from_secs(30);

const FILL: u8 = 0;
const DEMAND: u8 = 3;

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The product's link with its default tuning.
    Splice,
    /// quinn with its default settings.
    Quinn,
    /// The kernel's TCP with the congestion control of that name.
    Tcp(&'static str),
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "splice" => Ok(Self::Splice),
            "quinn" => Ok(Self::Quinn),
            "tcp-cubic" => Ok(Self::Tcp("cubic")),
            "tcp-bbr" => Ok(Self::Tcp("bbr")),
            _ => Err(format!(
                "{text:?} is none of splice, quinn, tcp-cubic, tcp-bbr"
            )),
        }
    }
}

/// Either end.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// splice, quinn, tcp-cubic or tcp-bbr.
    #[arg(long)]
    transport: Transport,
    /// Where to serve, or whom to ask.
    #[arg(long)]
    address: SocketAddr,
    /// The folder of the keys that [`make_keys`] made.
    #[arg(long)]
    keys: PathBuf,
    /// Ask, instead of serving, for at most this many seconds in each phase.
    #[arg(long)]
    fetch_seconds: Option<f64>,
    /// Requests in flight at once.
    #[arg(long, default_value_t = 4)]
    flights: usize,
    /// Also ask as guests would: until so many demands are answered on the idle line, and then until so many are answered on the full
    /// one.
    #[arg(long, default_value_t = 0)]
    demands: usize,
    /// Seconds at the beginning of a phase whose demands do not count.
    #[arg(long, default_value_t = 0.0)]
    start_up: f64,
    /// Print what was seen so far twice a second.
    #[arg(long)]
    follow: bool,
}

/// What the asking end saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// When the first bin began, CLOCK_MONOTONIC in nanoseconds.
    pub(crate) begun_ns: u64,
    /// Payload bytes of each [`BIN`].
    pub(crate) bins: Vec<u64>,
    /// From when on the line was filled, in seconds since the first bin began.
    pub(crate) filling_from_s: f64,
    /// When each demand was asked, in seconds since the first bin began, and what it waited, in microseconds. What was not answered at
    /// the end counts as what it had waited until then.
    pub(crate) demands: Vec<(f64, f64)>,
    /// Whether it asks no more.
    pub(crate) is_whole: bool,
    /// When each guest asked what it still waits for.
    #[serde(skip)]
    pub(crate) pending: Vec<Option<f64>>,
}

impl Record {
    /// Demands that were asked from `from_s` on and have an answer.
    fn answered_from(&self, from_s: f64) -> usize {
        let asked_then = |(asked, _): &&(f64, f64)| *asked >= from_s;
        self.demands.iter().filter(asked_then).count()
    }

    /// Ends it `at_s`, with bins to there: a connection that brought nothing at the end has bins of nothing, not none.
    fn end(&mut self, at_s: f64) {
        let waiting = self.pending.iter().flatten();
        let waits: Vec<_> = waiting
            .map(|asked| (*asked, (at_s - asked) * 1e6))
            .collect();
        self.demands.extend(waits);
        self.bins.resize((at_s / BIN.as_secs_f64()) as usize, 0);
        self.is_whole = true;
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live local of the right type; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

const REALM: RealmId = RealmId([7; 16]);

/// Makes a realm's keys and quinn's certificate in `folder`.
///
/// # Errors
/// They cannot be written.
pub(crate) fn make_keys(folder: &Path) -> Result<()> {
    let ca = RealmCa::create(REALM)?;
    let key = BranchKey::generate();
    let branch =
        key.with_certificate(&ca.issue_branch(BranchId([8; 16]), key.csr_der(), DAY)?)?;
    let datacenter = ca.issue_datacenter(&[], DAY)?;
    let quinn = rcgen::generate_simple_self_signed(["bench".to_owned()])?;
    for (name, text) in [
        ("ca", ca.cert_pem().as_str()),
        ("branch.cert", &branch.cert_pem),
        ("branch.key", &branch.key_pem),
        ("datacenter.cert", &datacenter.cert_pem),
        ("datacenter.key", &datacenter.key_pem),
    ] {
        std::fs::write(folder.join(name), text).with_context(|| name.to_owned())?;
    }
    std::fs::write(folder.join("quinn.cert"), quinn.cert.der()).context("quinn's certificate")?;
    std::fs::write(folder.join("quinn.key"), quinn.signing_key.serialize_der())
        .context("quinn's key")
}

fn identity(folder: &Path, name: &str) -> Result<(CertAndKey, String)> {
    let text = |file: String| std::fs::read_to_string(folder.join(&file)).context(file);
    let own = CertAndKey {
        cert_pem: text(format!("{name}.cert"))?,
        key_pem: text(format!("{name}.key"))?.into(),
    };
    Ok((own, text("ca".to_owned())?))
}

/// Runs one end.
///
/// # Errors
/// The peer cannot be reached, or the connection breaks.
pub(crate) fn run(options: &Options) -> Result<()> {
    // There is one provider; that somebody was first is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().context("the runtime")?;
    runtime.block_on(async {
        match options.fetch_seconds {
            None => serve(options).await,
            Some(seconds) => {
                let record = fetch(options, seconds).await?;
                println!("{}", serde_json::to_string(&record)?);
                Ok(())
            }
        }
    })?;
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

fn parse(request: &[u8]) -> Result<(u8, u64)> {
    let (class, length) = request.split_first().context("an empty request")?;
    Ok((
        *class,
        u64::from_le_bytes(length.try_into().context("a request of another length")?),
    ))
}

fn request(class: u8, bytes: u64) -> [u8; 9] {
    let mut request = [class; 9];
    request[1..].copy_from_slice(&bytes.to_le_bytes());
    request
}

async fn serve(options: &Options) -> Result<()> {
    match options.transport {
        Transport::Splice => {
            let (own, ca) = identity(&options.keys, "datacenter")?;
            let server = LinkServer::bind(options.address, &own, &ca, &LinkTuning::default())?;
            while let Some(incoming) = server.accept().await {
                if let Ok(Accepted::Branch(_, link)) = incoming.establish().await {
                    tokio::spawn(serve_link(link));
                }
            }
        }
        Transport::Quinn => {
            let read = |name: &str| std::fs::read(options.keys.join(name)).context(name.to_owned());
            let key = rustls::pki_types::PrivateKeyDer::Pkcs8(read("quinn.key")?.into());
            let config =
                quinn::ServerConfig::with_single_cert(vec![read("quinn.cert")?.into()], key)?;
            let endpoint = quinn::Endpoint::server(config, options.address)?;
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else {
                        return;
                    };
                    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                        tokio::spawn(async move {
                            let request = recv.read_to_end(9).await?;
                            let (_, mut left) = parse(&request)?;
                            let frame = vec![0x5a; FRAME_BYTES];
                            while left > 0 {
                                let bytes = left.min(FRAME_BYTES as u64) as usize;
                                send.write_all(&frame[..bytes]).await?;
                                left -= bytes as u64;
                            }
                            send.finish()?;
                            Ok::<(), anyhow::Error>(())
                        });
                    }
                });
            }
        }
        Transport::Tcp(congestion) => {
            let listener = TcpListener::bind(options.address).await?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                set_congestion(&stream, congestion)?;
                stream.set_nodelay(true)?;
                tokio::spawn(async move {
                    let frame = vec![0x5a; FRAME_BYTES];
                    let mut request = [0; 9];
                    while stream.read_exact(&mut request).await.is_ok() {
                        let (_, mut left) = parse(&request)?;
                        while left > 0 {
                            let bytes = left.min(FRAME_BYTES as u64) as usize;
                            stream.write_all(&frame[..bytes]).await?;
                            left -= bytes as u64;
                        }
                    }
                    Ok::<(), anyhow::Error>(())
                });
            }
        }
    }
    Ok(())
}

async fn serve_link(link: Link) -> Result<()> {
    loop {
        let (mut send, mut recv) = link.accept().await?;
        tokio::spawn(async move {
            let asked = recv.recv(9).await?.context("a request")?;
            let (class, mut left) = parse(&asked)?;
            send.set_class(if class == DEMAND {
                Class::Demand
            } else {
                Class::Fill
            });
            let frame = vec![0x5a; FRAME_BYTES];
            while left > 0 {
                let bytes = left.min(FRAME_BYTES as u64) as usize;
                send.send(&frame[..bytes]).await?;
                left -= bytes as u64;
            }
            send.finish()?;
            // Dropping it now is fine: it is finished. The link keeps sending.
            Ok::<(), anyhow::Error>(())
        });
    }
}

fn set_congestion(stream: &TcpStream, name: &str) -> Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the pointer and length are of a live string, and the descriptor is open while `stream` lives.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    if done != 0 {
        bail!(
            "the kernel has no congestion control {name}: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok(())
}

/// The asking end's connection. TCP's two are fill and demand: it has no streams.
enum Connection {
    Splice(Link),
    Quinn(
        quinn::Connection,
        #[expect(dead_code, reason = "it must live as long as its connection")] quinn::Endpoint,
    ),
    Tcp(SocketAddr),
}

async fn connect(options: &Options) -> Result<Connection> {
    Ok(match options.transport {
        Transport::Splice => {
            let (own, ca) = identity(&options.keys, "branch")?;
            let client = LinkClient::new(&own, &ca, REALM, &LinkTuning::default())?;
            Connection::Splice(client.connect(&options.address.to_string()).await?)
        }
        Transport::Quinn => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(
                std::fs::read(options.keys.join("quinn.cert"))
                    .context("quinn.cert")?
                    .into(),
            )?;
            let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0)))?;
            endpoint.set_default_client_config(quinn::ClientConfig::with_root_certificates(
                Arc::new(roots),
            )?);
            Connection::Quinn(endpoint.connect(options.address, "bench")?.await?, endpoint)
        }
        Transport::Tcp(_) => Connection::Tcp(options.address),
    })
}

impl Connection {
    /// Asks for bytes and says of each piece that came. TCP keeps `stream` from request to request.
    async fn ask(
        &self,
        class: u8,
        bytes: u64,
        stream: &mut Option<TcpStream>,
        mut came: impl FnMut(usize),
    ) -> Result<()> {
        match self {
            Self::Splice(link) => {
                let asked = request(class, bytes);
                // As the product's branch asks.
                let mut recv = if class == DEMAND {
                    link.request(Class::Demand, &asked).await?
                } else {
                    let (mut send, recv) = link.open(Class::Fill).await?;
                    send.send(&asked).await?;
                    send.finish()?;
                    recv
                };
                // Whoever has what it asked for does not wait for the stream's end, which a lost packet may hold back; the product's
                // branch does not either.
                let mut left = bytes;
                while left > 0 {
                    let frame = recv.recv(FRAME_BYTES).await?;
                    let read = frame.context("the stream ended early")?.len();
                    came(read);
                    left -= read as u64;
                }
            }
            Self::Quinn(connection, _) => {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(&request(class, bytes)).await?;
                send.finish()?;
                let mut left = bytes;
                while left > 0 {
                    let piece = recv.read_chunk(FRAME_BYTES, true).await?;
                    let read = piece.context("the stream ended early")?.bytes.len();
                    came(read);
                    left -= read as u64;
                }
            }
            Self::Tcp(address) => {
                let stream = match stream {
                    Some(stream) => stream,
                    None => stream.insert(TcpStream::connect(address).await?),
                };
                stream.write_all(&request(class, bytes)).await?;
                let (mut left, mut buffer) = (bytes, vec![0; FRAME_BYTES]);
                while left > 0 {
                    let want = left.min(FRAME_BYTES as u64) as usize;
                    let read = stream.read(&mut buffer[..want]).await?;
                    if read == 0 {
                        bail!("the server ended the connection");
                    }
                    came(read);
                    left -= read as u64;
                }
            }
        }
        Ok(())
    }
}

type Shared = Arc<Mutex<Record>>;

fn locked(record: &Shared) -> std::sync::MutexGuard<'_, Record> {
    record
        .lock()
        .expect("nothing panics while it holds the record")
}

async fn fetch(options: &Options, seconds_max: f64) -> Result<Record> {
    let connection = tokio::time::timeout(DIAL, connect(options))
        .await
        .context("connecting")??;
    let connection = Arc::new(connection);
    let begun = Instant::now();
    let record = Arc::new(Mutex::new(Record {
        begun_ns: monotonic_ns(),
        pending: vec![None; GUESTS as usize],
        ..Record::default()
    }));
    let mut tasks: Tasks = JoinSet::new();
    if options.demands > 0 {
        for guest in 0..GUESTS {
            tasks.spawn(demand(guest, connection.clone(), record.clone(), begun));
        }
        phase(options, seconds_max, begun, &record, &mut tasks).await?;
    }
    locked(&record).filling_from_s = begun.elapsed().as_secs_f64();
    for _ in 0..options.flights {
        tasks.spawn(fill(connection.clone(), record.clone(), begun));
    }
    phase(options, seconds_max, begun, &record, &mut tasks).await?;
    let mut record = std::mem::take(&mut *locked(&record));
    record.end(begun.elapsed().as_secs_f64());
    tasks.shutdown().await;
    Ok(record)
}

/// Of requests that go on until they fail.
type Tasks = JoinSet<Result<std::convert::Infallible>>;

/// Waits until enough demands are answered, or the time is over.
async fn phase(
    options: &Options,
    seconds_max: f64,
    begun: Instant,
    record: &Shared,
    tasks: &mut Tasks,
) -> Result<()> {
    let from = begun.elapsed().as_secs_f64();
    let mut said = from;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = tasks.join_next() => {
                ended.context("a request's task")??;
            }
        }
        let now = begun.elapsed().as_secs_f64();
        let answered = locked(record).answered_from(from + options.start_up);
        if now >= from + seconds_max || (options.demands > 0 && answered >= options.demands) {
            return Ok(());
        }
        if options.follow && now >= said + 0.5 {
            said = now;
            let text = serde_json::to_string(&*locked(record))?;
            println!("{text}");
        }
    }
}

/// Asks for bulk, one request behind another.
async fn fill(
    connection: Arc<Connection>,
    record: Shared,
    begun: Instant,
) -> Result<std::convert::Infallible> {
    let mut stream = None;
    loop {
        // One endless request would do for TCP; with requests a gap of a round trip would come between two.
        let bytes = if matches!(*connection, Connection::Tcp(_)) {
            u64::MAX
        } else {
            REQUEST_BYTES
        };
        let note = |bytes: usize| {
            let bin = (begun.elapsed().as_nanos() / BIN.as_nanos()) as usize;
            let mut record = locked(&record);
            if record.bins.len() <= bin {
                record.bins.resize(bin + 1, 0);
            }
            record.bins[bin] += bytes as u64;
        };
        connection.ask(FILL, bytes, &mut stream, note).await?;
    }
}

/// Asks as a guest does that reads now and then.
async fn demand(
    guest: u32,
    connection: Arc<Connection>,
    record: Shared,
    begun: Instant,
) -> Result<std::convert::Infallible> {
    let mut stream = None;
    let first = begun + DEMAND_EVERY * guest / GUESTS;
    let mut beat = tokio::time::interval_at(first, DEMAND_EVERY);
    // A slow answer delays the next question: a guest that waits asks for nothing else.
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let asked = begun.elapsed().as_secs_f64();
        locked(&record).pending[guest as usize] = Some(asked);
        connection
            .ask(DEMAND, DEMAND_BYTES, &mut stream, |_| ())
            .await?;
        let waited = (begun.elapsed().as_secs_f64() - asked) * 1e6;
        let mut record = locked(&record);
        // The record is taken away at the end.
        if let Some(pending) = record.pending.get_mut(guest as usize) {
            *pending = None;
            record.demands.push((asked, waited));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_not_answered_counts_as_long_as_it_waited() {
        let mut record = Record {
            demands: vec![(0.5, 100_000.0)],
            pending: vec![None, Some(1.0)],
            bins: vec![7],
            ..Record::default()
        };
        assert_eq!(record.answered_from(0.6), 0);
        record.end(3.0);
        assert_eq!(record.demands[1], (1.0, 2e6));
        assert_eq!((record.bins.len(), record.is_whole), (30, true));
    }

    /// Over loopback: guests are answered first on an idle line, then on a full one, and it ends when that is enough.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn demands_are_asked_on_an_idle_line_and_then_on_a_full_one() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let keys = tempfile::tempdir().unwrap();
        make_keys(keys.path()).unwrap();
        for transport in ["splice", "quinn", "tcp-cubic"] {
            let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let options = |seconds| Options {
                transport: transport.parse().unwrap(),
                address: free.local_addr().unwrap(),
                keys: keys.path().to_owned(),
                fetch_seconds: seconds,
                flights: 1,
                demands: 8,
                start_up: 0.1,
                follow: false,
            };
            let (server, client) = (options(None), options(Some(20.0)));
            drop(free);
            let serving = tokio::spawn(async move { serve(&server).await });
            tokio::time::sleep(Duration::from_millis(200)).await;
            let record = fetch(&client, 20.0).await.unwrap();
            serving.abort();
            let filled = (record.filling_from_s / BIN.as_secs_f64()) as usize;
            assert!(record.is_whole && filled >= 3, "{transport}: {filled}");
            assert_eq!(record.bins[..filled].iter().sum::<u64>(), 0, "{transport}");
            assert!(
                record.bins[filled..].iter().sum::<u64>() > 1 << 20,
                "{transport}"
            );
            let then = record.answered_from(record.filling_from_s + 0.1);
            let before = record.answered_from(0.1) - record.answered_from(record.filling_from_s);
            assert!(before >= 8 && then >= 8, "{transport}: {before}, {then}");
            assert!(record.filling_from_s < 10.0, "{transport}");
        }
    }
}
