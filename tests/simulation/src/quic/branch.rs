//! The branch's end: one attempt after another, each with an endpoint and a port of its own, as the product dials.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use dedup_transport::congestion::{PathCell, PathRecord};
use dedup_transport::link::Class;
use quinn_proto::{DatagramEvent, Endpoint};

use super::link::{LinkEnd, Told};
use super::settings::NAME;
use super::wire::Datagram;
use super::{Around, BRANCH, DATACENTER};
use crate::carrier::Arrival;
use crate::line::Way;

/// See the module.
pub(super) struct Branch {
    pub(super) is_alive: bool,
    dialled: Option<Dialled>,
    next_port: u16,
    /// What the last link measured of the path.
    remembered: Option<PathRecord>,
}

/// One attempt, and the link that comes of it.
struct Dialled {
    /// As the datacenter sees it.
    address: SocketAddr,
    endpoint: Endpoint,
    link: LinkEnd,
}

impl Branch {
    pub(super) fn new() -> Self {
        Self {
            is_alive: true,
            dialled: None,
            next_port: 10_000,
            remembered: None,
        }
    }

    fn fresh_address(&mut self) -> SocketAddr {
        self.next_port += 1;
        (BRANCH, self.next_port).into()
    }

    pub(super) fn dial(&mut self, around: &mut Around) {
        if !self.is_alive || self.dialled.is_some() {
            return;
        }
        let path = Arc::new(PathCell::default());
        if let Some(record) = self.remembered {
            path.remember(record);
        }
        let mut endpoint = around.settings.endpoint(false, &mut around.rng);
        let config = around.settings.client(&path, &mut around.rng);
        let connection = endpoint
            .connect(around.at(), config, DATACENTER.into(), NAME)
            .expect("address and settings are good");
        let window = around.settings.tuning.window_bytes;
        self.dialled = Some(Dialled {
            address: self.fresh_address(),
            endpoint,
            link: LinkEnd::new(connection, around.now, path, window),
        });
    }

    /// What came to one of its ports.
    pub(super) fn receive(&mut self, around: &mut Around, datagram: Datagram) {
        let to = datagram.branch;
        let Some(dialled) = self.dialled.as_mut().filter(|d| d.address == to) else {
            around.tally.undeliverable += 1;
            return;
        };
        let data = BytesMut::from(&datagram.bytes[..]);
        let mut response = Vec::new();
        let (endpoint, at) = (&mut dialled.endpoint, around.at());
        match endpoint.handle(at, DATACENTER.into(), None, None, data, &mut response) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => dialled.link.receive(event),
            Some(DatagramEvent::NewConnection(_)) => panic!("a branch does not listen"),
            Some(DatagramEvent::Response(_)) => around.put(Way::Up, to, &response),
            None => {}
        }
    }

    /// Sends a request, if there is a link.
    pub(super) fn send(&mut self, stream: u64, class: Class, payload: &[u8], is_control: bool) {
        if let Some(Dialled { link, .. }) = &mut self.dialled {
            link.request(stream, class, payload, is_control);
        }
    }

    /// A NAT on the way forgets its address and gives it another; nobody tells either end.
    pub(super) fn rebind(&mut self, around: &mut Around) {
        let address = self.fresh_address();
        if let Some(dialled) = &mut self.dialled {
            dialled.address = address;
            around.tally.rebound += 1;
        }
    }

    /// Gives its link or attempt up. The port is gone with it, so what comes of the goodbye is not heard any more.
    pub(super) fn hang_up(&mut self, around: &mut Around) {
        if let Some(mut dialled) = self.dialled.take() {
            dialled.link.close(around.at());
            dialled.drive(around);
            self.let_go(around, &dialled);
        }
    }

    /// The process is gone.
    pub(super) fn die(&mut self) {
        self.is_alive = false;
        self.dialled = None;
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.dialled.as_ref()?.link.due()
    }

    pub(super) fn drive(&mut self, around: &mut Around) {
        let Some(dialled) = self.dialled.as_mut().filter(|d| d.link.is_due(around.now)) else {
            return;
        };
        if dialled.link.is_overdue(around.now) {
            self.hang_up(around);
            return;
        }
        for told in dialled.drive(around) {
            match told {
                Told::Up => around.arrivals.push_back(Arrival::Up),
                Told::Frame { stream, frame } => {
                    around
                        .arrivals
                        .push_back(Arrival::ToBranch { stream, frame });
                }
                Told::Room { .. } => {}
                Told::Blocked => around.tally.blocked += 1,
                Told::Gone(reason) => {
                    around.note(&reason);
                    if let Some(dialled) = self.dialled.take() {
                        self.let_go(around, &dialled);
                    }
                }
            }
        }
    }

    fn let_go(&mut self, around: &mut Around, dialled: &Dialled) {
        self.remembered = dialled.link.record(*DATACENTER.ip()).or(self.remembered);
        let was_up = dialled.link.is_up();
        around.arrivals.push_back(Arrival::Down { was_up });
    }
}

impl Dialled {
    fn drive(&mut self, around: &mut Around) -> Vec<Told> {
        let branch = self.address;
        self.link
            .drive(around, &mut self.endpoint, |around, _, bytes| {
                around.put(Way::Up, branch, bytes);
            })
    }
}
