//! The NAT of desktops, in a network namespace of the test's own: frames are written and read at the taps that machines would have. Needs
//! root, /dev/net/tun, ip, nft and dnsmasq; says so and passes where they are missing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use branch::network::choice::{Choice, Settings};
use branch::network::subnet::{self, Subnet};
use branch::network::{Card, Network, NetworkError, Owner};

/// Longest wait for a frame that comes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The header before each frame at a tap.
const VNET: usize = 10;
const ETHERNET: usize = 14;
const EVERYBODY: [u8; 6] = [0xff; 6];
const BRIDGE: &str = "swnat0";
/// A port of the branch's that desktops have no business with.
const PORT: u16 = 9999;

fn subnet() -> Subnet {
    "10.213.8.0/29".parse().unwrap()
}

fn place(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, 8, last)
}

fn settings(default: Choice) -> Settings {
    Settings {
        default,
        nat_bridge: BRIDGE.into(),
        nat_subnet: subnet(),
        ..Settings::default()
    }
}

fn run(line: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new("sh");
    let output = command.args(["-c", line]).env("PATH", path).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// Runs `work` on a thread in a network namespace that is gone with it.
fn in_namespace(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: plain numbers; only this thread and what it starts are there.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return println!("skipped: no network namespace without root");
        }
        if !Path::new("/dev/net/tun").exists() {
            return println!("skipped: no /dev/net/tun");
        }
        for what in [
            "ip link set lo up",
            "dnsmasq --version",
            "nft add table bridge swt && nft delete table bridge swt",
            "nft add table inet swt && nft delete table inet swt",
            "ip link add swt type bridge && ip link delete swt",
        ] {
            if run(what).is_none() {
                return println!("skipped: `{what}` does not work here");
            }
        }
        work();
    });
    thread.join().unwrap();
}

/// A branch server's folders; nothing runs on when they are gone.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn network(&self, settings: Settings) -> Network {
        Network::new(settings, self.0.path(), self.0.path())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.network(settings(Choice::None)).prepare(false) {
            eprintln!("the network is left: {error}");
        }
    }
}

/// One end of a card, as the machine has it.
struct Desktop {
    card: Card,
    place: Ipv4Addr,
}

impl Desktop {
    fn plug(network: &Network, last: u8) -> Self {
        let owner = Owner {
            id: [last; 16],
            address: Some(place(last)),
        };
        let card = network.plug(&Choice::Nat, owner).unwrap().unwrap();
        Self {
            card,
            place: place(last),
        }
    }

    fn send(&self, frame: &[u8]) {
        let mut packet = vec![0; VNET];
        packet.extend(frame);
        let sent = rustix::io::write(&*self.card.tap, &packet).unwrap();
        assert_eq!(sent, packet.len());
    }

    fn ethernet(&self, to: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
        let head = [&to[..], &self.card.mac, &kind.to_be_bytes()].concat();
        [&head[..], body].concat()
    }

    /// Asks who has an address, in somebody's name.
    fn ask(&self, wanted: Ipv4Addr, as_mac: [u8; 6], as_place: Ipv4Addr) {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend(as_mac);
        body.extend(as_place.octets());
        body.extend([0; 6]);
        body.extend(wanted.octets());
        let mut frame = self.ethernet(EVERYBODY, 0x0806, &body);
        frame[6..12].copy_from_slice(&as_mac);
        self.send(&frame);
    }

    /// A datagram from this desktop.
    fn datagram(&self, to: ([u8; 6], Ipv4Addr), ports: (u16, u16), data: &[u8]) {
        let from = if ports.0 == 68 {
            Ipv4Addr::UNSPECIFIED
        } else {
            self.place
        };
        let len = (data.len() + 8) as u16;
        let mut packet = vec![0x45, 0];
        packet.extend((len + 20).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.1.octets());
        let sum: u32 = packet
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
        let sum = !fold(fold(sum)) as u16;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        for field in [ports.0, ports.1, len, 0] {
            packet.extend(field.to_be_bytes());
        }
        packet.extend(data);
        self.send(&self.ethernet(to.0, 0x0800, &packet));
    }

    /// What has come, up to the first frame that `is_last`.
    fn heard_until(&self, what: &str, is_last: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let (mut heard, begun) = (Vec::new(), Instant::now());
        let mut packet = [0; 4096];
        loop {
            match rustix::io::read(&*self.card.tap, &mut packet) {
                Ok(len) if len >= VNET + ETHERNET => {
                    heard.push(packet[VNET..len].to_vec());
                    if heard.last().is_some_and(|frame| is_last(frame)) {
                        return heard;
                    }
                }
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    assert!(begun.elapsed() < PATIENCE, "no {what} in {heard:02x?}");
                    wait(&self.card);
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }

    /// Asks for the gateway and has its answer; everything that came before it.
    fn meets_gateway(&self) -> Vec<Vec<u8>> {
        self.ask(subnet().gateway(), self.card.mac, self.place);
        let own = self.place.octets();
        self.heard_until("answer of the gateway", |frame| {
            is_answer(frame) && frame[38..42] == own
        })
    }
}

/// Until something may have come.
fn wait(card: &Card) {
    let mut polls = [rustix::event::PollFd::from_borrowed_fd(
        card.tap.as_fd(),
        rustix::event::PollFlags::IN,
    )];
    let tick = rustix::event::Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut polls, Some(&tick)).unwrap();
}

fn is_answer(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
}

fn gateway() -> ([u8; 6], Ipv4Addr) {
    let gateway = subnet().gateway();
    (subnet::mac_of(gateway), gateway)
}

/// A question for the name `a`.
const QUESTION: [u8; 19] = [
    0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1,
];

/// What a card that has no address yet asks everybody.
fn discover(mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 7, 7, 7, 7, 0, 0, 0x80, 0];
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    message
}

/// The address that an offer has for this card.
fn offered(frame: &[u8], mac: [u8; 6]) -> Option<[u8; 4]> {
    let message = frame.get(ETHERNET + 28..)?;
    let is_offer = frame[12..14] == [8, 0] && frame[23] == 17 && message.first() == Some(&2);
    let is_ours = message.get(28..34)? == mac;
    let place = message.get(16..20)?;
    (is_offer && is_ours).then(|| [place[0], place[1], place[2], place[3]])
}

#[test]
fn desktops_reach_the_gateway_and_nobody_in_another_s_name() {
    in_namespace(|| {
        let host = Host::new();
        let network = host.network(settings(Choice::Nat));
        network.prepare(false).unwrap();
        let (alice, bob) = (Desktop::plug(&network, 2), Desktop::plug(&network, 3));
        alice.meets_gateway();
        bob.meets_gateway();

        // Neither a neighbour's address nor its card is one's own.
        alice.ask(subnet().gateway(), alice.card.mac, bob.place);
        alice.ask(subnet().gateway(), bob.card.mac, bob.place);
        alice.ask(subnet().gateway(), bob.card.mac, alice.place);
        let heard = alice.meets_gateway();
        let answers = heard.iter().filter(|frame| is_answer(frame));
        assert_eq!(answers.count(), 1, "{heard:02x?}");

        // Nothing goes from desktop to desktop, to one or to all.
        alice.ask(bob.place, alice.card.mac, alice.place);
        alice.datagram((bob.card.mac, bob.place), (7, 7), b"to bob");
        alice.datagram((gateway().0, bob.place), (7, 7), b"by way of the gateway");
        let from_alice = |frame: &Vec<u8>| {
            let sender = frame.get(26..30);
            frame[6..12] == alice.card.mac || sender == Some(&alice.place.octets()[..])
        };
        let heard = bob.meets_gateway();
        assert!(!heard.iter().any(from_alice), "{heard:02x?}");
        alice.meets_gateway();
    });
}

#[test]
fn desktops_get_their_address_and_names_and_no_port_of_the_branch() {
    in_namespace(|| {
        let host = Host::new();
        let network = host.network(settings(Choice::Nat));
        network.prepare(false).unwrap();
        let alice = Desktop::plug(&network, 2);
        let port = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        port.set_nonblocking(true).unwrap();

        let everybody = (EVERYBODY, Ipv4Addr::BROADCAST);
        alice.datagram(everybody, (68, 67), &discover(alice.card.mac));
        let mac = alice.card.mac;
        let heard = alice.heard_until("offer", |frame| offered(frame, mac).is_some());
        let offer = heard.last().and_then(|frame| offered(frame, mac));
        assert_eq!(offer, Some(alice.place.octets()));

        alice.meets_gateway();
        alice.datagram(gateway(), (7, PORT), b"is anybody there");
        alice.datagram(gateway(), (7, 53), &QUESTION);
        alice.heard_until("answer about a name", |frame| {
            frame[12..14] == [8, 0] && frame.get(34..36) == Some(&[0, 53][..])
        });
        let mut bytes = [0; 64];
        let come = port.recv(&mut bytes).map_err(|error| error.kind());
        assert_eq!(come, Err(ErrorKind::WouldBlock), "{bytes:?}");
    });
}

#[test]
fn whatever_is_left_or_gone_is_mended_and_taken_away_by_name() {
    in_namespace(|| {
        let host = Host::new();
        let new = |choice| host.network(settings(choice));
        let number = || std::fs::read_to_string(host.0.path().join(BRIDGE).join("process"));
        let network = new(Choice::Nat);
        network.prepare(false).unwrap();
        let first = number().unwrap();
        let alice = Desktop::plug(&network, 2);
        let again = network.plug(
            &Choice::Nat,
            Owner {
                id: [0; 16],
                address: Some(place(2)),
            },
        );
        assert!(matches!(again, Err(NetworkError::Tap { .. })));

        // The next server of the branch finds it, with what runs at it.
        let network = new(Choice::Nat);
        network.prepare(true).unwrap();
        assert_eq!(number().unwrap(), first, "dnsmasq goes on");
        alice.meets_gateway();
        // Somebody's reload took the rules away: the next desktop is not without them.
        run("nft flush ruleset").unwrap();
        let bob = Desktop::plug(&network, 3);
        let tables = run("nft list tables").unwrap();
        assert!(tables.contains(&format!("table bridge splice_{BRIDGE}")));
        bob.meets_gateway();
        // A tap is there as long as its machine.
        drop(alice);
        assert!(run(&format!("ip link show dev {}", subnet::tap_of(place(2)))).is_none());

        // Another name, and none: what runs keeps its own.
        let other = Settings {
            nat_bridge: "swnat1".into(),
            ..settings(Choice::Nat)
        };
        let other = host.network(other);
        let refused = other.prepare(true).unwrap_err();
        assert!(refused.to_string().contains(BRIDGE), "{refused}");
        let owner = Owner {
            id: [0; 16],
            address: Some(place(4)),
        };
        let refused = other.plug(&Choice::Nat, owner);
        assert!(matches!(refused, Err(NetworkError::InUse(_))));
        new(Choice::None).prepare(true).unwrap();
        bob.meets_gateway();
        drop(bob);
        new(Choice::None).prepare(false).unwrap();
        assert!(run(&format!("ip link show dev {BRIDGE}")).is_none());
        assert_eq!(run("nft list tables").unwrap(), "");
        assert_eq!(number().unwrap_err().kind(), ErrorKind::NotFound);
        new(Choice::None).prepare(false).unwrap();
    });
}

#[test]
fn a_bridge_of_somebody_else_s_is_used_only_when_it_is_chosen() {
    in_namespace(|| {
        let host = Host::new();
        run(&format!("ip link add {BRIDGE} type bridge")).unwrap();
        let network = host.network(settings(Choice::Nat));
        let refused = network.prepare(false).unwrap_err().to_string();
        assert!(refused.contains("--nat-bridge"), "{refused}");
        assert_eq!(run("nft list tables").unwrap(), "");

        let owner = Owner {
            id: [7; 16],
            address: None,
        };
        let chosen = Choice::Bridge(BRIDGE.into());
        let card = network.plug(&chosen, owner).unwrap().unwrap();
        assert_eq!(card.mac_text(), "52:54:07:07:07:07");
        let shown = run("ip link show dev sb07070707").unwrap();
        assert!(shown.contains(&format!("master {BRIDGE}")), "{shown}");
        let missing = network.plug(&Choice::Bridge("lo".into()), owner);
        assert!(matches!(missing, Err(NetworkError::NoBridge(_))));
        assert!(network.plug(&Choice::None, owner).unwrap().is_none());
    });
}
