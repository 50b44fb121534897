//! The portal over a real port: who gets in, what is refused, and bytes between a browser and a made-up RFB server.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use super::*;
use crate::portal::house::House;
use crate::portal::tests::{FakeHouse, PASSWORD};

/// What an RFB server says first.
const HELLO: &[u8] = b"RFB 003.008\n";

struct Site {
    address: SocketAddr,
    house: Arc<FakeHouse>,
    screens: UnixListener,
    _folder: tempfile::TempDir,
}

/// An answer: its status, its head and its body.
struct Answer(u16, String, Value);

/// A browser that is logged in.
struct Browser {
    cookie: String,
    csrf: String,
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("screen.sock");
        let screens = UnixListener::bind(&socket).unwrap();
        let house = FakeHouse::new(socket);
        let behind: Arc<dyn House> = house.clone();
        let portal = Arc::new(Portal::new(behind, None));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = router(portal).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self {
            address,
            house,
            screens,
            _folder: folder,
        }
    }

    /// A call, whose answer is read to its end.
    async fn call(&self, method: &str, path: &str, head: &str, body: Option<&Value>) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{head}Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        Answer(status, head.to_owned(), body)
    }

    async fn try_log_in(&self, name: &str, password: &str) -> Answer {
        let body = json!({"name": name, "password": password});
        let head = "Content-Type: application/json\r\n";
        self.call("POST", "/v1/log-in", head, Some(&body)).await
    }

    async fn log_in(&self, name: &str) -> Browser {
        let Answer(status, head, body) = self.try_log_in(name, PASSWORD).await;
        assert_eq!(status, 200, "{head}");
        let cookie = head.lines().find(|line| line.starts_with("set-cookie: "));
        let cookie = cookie.unwrap().trim_start_matches("set-cookie: ");
        for word in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/"] {
            assert!(cookie.contains(word), "{cookie}");
        }
        Browser {
            cookie: cookie.split(';').next().unwrap().to_owned(),
            csrf: body["csrf"].as_str().unwrap().to_owned(),
        }
    }

    /// As the page calls.
    async fn by(
        &self,
        browser: &Browser,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let head = format!(
            "Cookie: {}\r\nX-Splice-Csrf: {}\r\nContent-Type: application/json\r\n",
            browser.cookie, browser.csrf
        );
        self.call(method, path, &head, body).await
    }

    /// One click, until there is a ticket.
    async fn click(&self, browser: &Browser, pool: &str) -> String {
        let path = format!("/v1/desktops/{pool}/connect");
        for _ in 0..1000 {
            let Answer(status, _, body) = self.by(browser, "POST", &path, None).await;
            assert_eq!(status, 200, "{body}");
            match serde_json::from_value(body).unwrap() {
                Connection::Ready { ticket } => return ticket,
                Connection::Starting => tokio::task::yield_now().await,
                other => panic!("{other:?}"),
            }
        }
        panic!("it starts for ever");
    }

    /// Opens a WebSocket; answers the status and the connection.
    async fn open(&self, cookie: &str, ticket: &str, origin: &str) -> (u16, TcpStream) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET /v1/screen?ticket={ticket} HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\nCookie: {cookie}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), stream)
    }

    fn origin(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A browser that looks at a desktop, and the machine's end of it.
    async fn look(&self, browser: &Browser, pool: &str) -> (TcpStream, UnixStream) {
        let ticket = self.click(browser, pool).await;
        let opened = self.open(&browser.cookie, &ticket, &self.origin()).await;
        assert_eq!(opened.0, 101);
        let (machine, _) = self.screens.accept().await.unwrap();
        (opened.1, machine)
    }
}

/// Sends a frame as browsers do: masked, here with zeros.
async fn send(stream: &mut TcpStream, opcode: u8, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).unwrap();
    let mut frame = vec![0x80 | opcode, 0x80 | 126];
    frame.extend(len.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(bytes);
    stream.write_all(&frame).await.unwrap();
}

/// The next frame that is no ping.
async fn receive(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    loop {
        let opcode = stream.read_u8().await.unwrap() & 0x0f;
        let len = match stream.read_u8().await.unwrap() {
            126 => usize::from(stream.read_u16().await.unwrap()),
            127 => usize::try_from(stream.read_u64().await.unwrap()).unwrap(),
            len => usize::from(len),
        };
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).await.unwrap();
        if opcode != 9 {
            return (opcode, bytes);
        }
    }
}

/// The code of a close frame that comes next.
async fn closed(stream: &mut TcpStream) -> u16 {
    let (opcode, bytes) = receive(stream).await;
    assert_eq!(opcode, 8, "{bytes:?}");
    u16::from_be_bytes([bytes[0], bytes[1]])
}

#[tokio::test]
async fn bytes_go_both_ways_and_another_browser_takes_over() {
    let site = Site::new().await;
    let alice = site.log_in("alice").await;
    let (mut browser, mut machine) = site.look(&alice, "office").await;
    machine.write_all(HELLO).await.unwrap();
    assert_eq!(receive(&mut browser).await, (2, HELLO.to_vec()));
    let typed: Vec<u8> = (0..60_000_u32).map(|i| i as u8).collect();
    send(&mut browser, 2, &typed).await;
    let mut came = vec![0; typed.len()];
    machine.read_exact(&mut came).await.unwrap();
    assert_eq!(came, typed);

    // More than any buffer between, and the browser reads late: nothing is lost.
    let pixels: Vec<u8> = (0..4_000_000_u32).map(|i| (i >> 8) as u8).collect();
    let (sent, read) = (pixels.clone(), async {
        let mut came = Vec::new();
        while came.len() < pixels.len() {
            came.extend(receive(&mut browser).await.1);
        }
        came
    });
    let (written, came) = tokio::join!(machine.write_all(&sent), read);
    written.unwrap();
    assert!(came == pixels);

    let elsewhere = site.log_in("alice").await;
    let (mut second, mut again) = site.look(&elsewhere, "office").await;
    assert_eq!(closed(&mut browser).await, 4001);
    assert_eq!(
        machine.read(&mut [0; 1]).await.unwrap(),
        0,
        "its end is the machine's"
    );
    again.write_all(HELLO).await.unwrap();
    assert_eq!(receive(&mut second).await.1, HELLO);
    drop(again);
    assert_eq!(closed(&mut second).await, 4003);
}

#[tokio::test]
async fn a_log_out_closes_what_it_looks_at() {
    let site = Site::new().await;
    let alice = site.log_in("alice").await;
    let (mut browser, _machine) = site.look(&alice, "office").await;
    assert_eq!(site.by(&alice, "POST", "/v1/log-out", None).await.0, 204);
    assert_eq!(closed(&mut browser).await, 4002);
    assert_eq!(site.by(&alice, "GET", "/v1/session", None).await.0, 401);
}

#[tokio::test]
async fn what_a_browser_may_not_send_ends_it() {
    let site = Site::new().await;
    let alice = site.log_in("alice").await;
    let (mut browser, mut machine) = site.look(&alice, "office").await;
    send(&mut browser, 1, b"text").await;
    assert_eq!(machine.read(&mut [0; 1]).await.unwrap(), 0);
    // A length beyond the limit is refused before its bytes come.
    let (mut browser, mut machine) = site.look(&alice, "office").await;
    let mut frame = vec![0x82, 0x80 | 127];
    frame.extend((1_u64 << 40).to_be_bytes());
    frame.extend([0; 4]);
    browser.write_all(&frame).await.unwrap();
    assert_eq!(machine.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_screen_needs_its_ticket_its_session_and_our_own_page() {
    let site = Site::new().await;
    let (alice, bob) = (site.log_in("alice").await, site.log_in("bob").await);
    let origin = site.origin();
    let plain = format!("http://{}", site.address);
    for (cookie, origin, status) in [
        ("", origin.as_str(), 401),
        (bob.cookie.as_str(), origin.as_str(), 403),
        (alice.cookie.as_str(), "https://evil.example.com", 403),
        (alice.cookie.as_str(), plain.as_str(), 403),
        (alice.cookie.as_str(), "null", 403),
    ] {
        let ticket = site.click(&alice, "office").await;
        let opened = site.open(cookie, &ticket, origin).await;
        assert_eq!(opened.0, status, "{cookie} {origin}");
    }
    let ticket = site.click(&alice, "office").await;
    assert_eq!(site.open(&alice.cookie, &ticket, &origin).await.0, 101);
    assert_eq!(site.open(&alice.cookie, &ticket, &origin).await.0, 403);
    assert_eq!(site.open(&alice.cookie, "", &origin).await.0, 403);
}

#[tokio::test]
async fn calls_need_a_session_and_changes_its_word() {
    let site = Site::new().await;
    let (alice, bob) = (site.log_in("alice").await, site.log_in("bob").await);
    let calls = [
        ("GET", "/v1/session"),
        ("GET", "/v1/desktops"),
        ("POST", "/v1/log-out"),
        ("POST", "/v1/desktops/office/connect"),
        ("POST", "/v1/desktops/office/power"),
    ];
    for (method, path) in calls {
        assert_eq!(site.call(method, path, "", None).await.0, 401, "{path}");
        let stale = "Cookie: __Host-splice-portal=00\r\n".to_owned();
        let status = site.call(method, path, &stale, None).await.0;
        assert!(status == 401 || status == 403, "{path}");
    }
    // Another site's page has the browser send the cookie, and does not know the word; another session's is not it.
    for word in [String::new(), format!("X-Splice-Csrf: {}\r\n", bob.csrf)] {
        let head = format!("Cookie: {}\r\n{word}", alice.cookie);
        for (method, path) in calls.iter().filter(|(method, _)| *method == "POST") {
            assert_eq!(site.call(method, path, &head, None).await.0, 403, "{path}");
        }
    }
    // A user's reach over HTTP, too.
    let refused = site
        .by(&bob, "POST", "/v1/desktops/lab/connect", None)
        .await;
    assert_eq!(refused.0, 404);
    let body = json!({"action": "power_off"});
    let path = "/v1/desktops/lab/power";
    assert_eq!(site.by(&bob, "POST", path, Some(&body)).await.0, 404);
    assert_eq!(site.by(&alice, "POST", path, Some(&body)).await.0, 204);
    let Answer(_, _, mine) = site.by(&bob, "GET", "/v1/desktops", None).await;
    assert_eq!(mine["desktops"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn log_ins_are_bounded_by_address() {
    let site = Site::new().await;
    let mut refused = 0;
    for _ in 0..20 {
        match site.try_log_in("alice", "wrong").await.0 {
            401 => {}
            429 => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(refused >= 5, "{refused}");
    assert_eq!(site.try_log_in("alice", PASSWORD).await.0, 429);
    site.house
        .now
        .fetch_add(60, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(site.try_log_in("alice", PASSWORD).await.0, 200);
}

#[tokio::test]
async fn every_answer_is_guarded() {
    let site = Site::new().await;
    for path in ["/", "/assets/none.js", "/v1/session", "/healthz", "/none"] {
        let Answer(_, head, _) = site.call("GET", path, "", None).await;
        for line in [
            "content-security-policy: default-src 'none';",
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
            "cache-control: no-store",
        ] {
            assert!(head.contains(line), "{path}: {head}");
        }
    }
    // The branch-local API, which knows no users, is not here.
    for path in [
        "/v1/status",
        "/v1/support",
        "/v1/desktops/alice-office",
        "/metrics",
    ] {
        assert_eq!(site.call("GET", path, "", None).await.0, 404, "{path}");
    }
}
