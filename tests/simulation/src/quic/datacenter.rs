//! The datacenter's end: one endpoint per life of the process, and a connection for each of the branch's that it has not found dead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use dedup_protocol::wire::Message;
use dedup_transport::congestion::{PathCell, PathRecord};
use quinn_proto::{DatagramEvent, Endpoint, Incoming};

use super::link::{LinkEnd, Told};
use super::wire::Datagram;
use super::{Around, BRANCH, class_of};
use crate::carrier::Arrival;
use crate::line::Way;

/// See the module.
pub(super) struct Datacenter {
    /// `None` while the process is dead.
    life: Option<Life>,
    next_link: u64,
    /// What the last link measured of the path.
    remembered: Option<PathRecord>,
}

struct Life {
    endpoint: Endpoint,
    links: BTreeMap<u64, LinkEnd>,
}

impl Datacenter {
    pub(super) fn new() -> Self {
        Self {
            life: None,
            next_link: 1,
            remembered: None,
        }
    }

    pub(super) fn start(&mut self, around: &mut Around) {
        self.life = Some(Life {
            endpoint: around.settings.endpoint(true, &mut around.rng),
            links: BTreeMap::new(),
        });
    }

    /// The process is gone.
    pub(super) fn die(&mut self) {
        self.life = None;
    }

    /// What came to its port.
    pub(super) fn receive(&mut self, around: &mut Around, datagram: Datagram) {
        let from = datagram.branch;
        let Some(Life { endpoint, links }) = &mut self.life else {
            around.tally.undeliverable += 1;
            return;
        };
        let data = BytesMut::from(&datagram.bytes[..]);
        let mut response = Vec::new();
        match endpoint.handle(around.at(), from, None, None, data, &mut response) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(link) = links.values_mut().find(|link| link.handle() == handle) {
                    link.receive(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(around, incoming),
            Some(DatagramEvent::Response(_)) => around.put(Way::Down, from, &response),
            None => {}
        }
    }

    fn accept(&mut self, around: &mut Around, incoming: Incoming) {
        let Some(Life { endpoint, links }) = &mut self.life else {
            return;
        };
        let from = incoming.remote_address();
        let path = Arc::new(PathCell::default());
        if let Some(record) = self.remembered {
            path.remember(record);
        }
        let config = around.settings.server(&path);
        let mut response = Vec::new();
        match endpoint.accept(incoming, around.at(), &mut response, Some(config)) {
            Ok(connection) => {
                let window = around.settings.tuning.window_bytes;
                let link = LinkEnd::new(connection, around.now, path, window);
                links.insert(self.next_link, link);
                self.next_link += 1;
            }
            Err(error) if error.response.is_some() => around.put(Way::Down, from, &response),
            Err(_) => {}
        }
    }

    /// Sends a frame of an answer, or ends it; nothing happens when the link is gone.
    pub(super) fn send(&mut self, link: u64, stream: u64, payload: Option<&[u8]>) {
        let life = self.life.as_mut();
        if let Some(link) = life.and_then(|life| life.links.get_mut(&link)) {
            link.answer(stream, payload);
        }
    }

    /// Gives its newest link up.
    pub(super) fn hang_up(&mut self, around: &mut Around) {
        let newest = self.life.as_mut().and_then(|l| l.links.last_entry());
        if let Some(mut newest) = newest {
            newest.get_mut().close(around.at());
            let link = *newest.key();
            around.arrivals.push_back(Arrival::Lost { link });
        }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        let links = self.life.as_ref()?.links.values();
        links.filter_map(LinkEnd::due).min()
    }

    pub(super) fn drive(&mut self, around: &mut Around) {
        let Some(Life { endpoint, links }) = &mut self.life else {
            return;
        };
        let now = around.now;
        for (number, link) in links.iter_mut().filter(|(_, l)| l.is_due(now)) {
            if link.is_overdue(now) {
                link.close(around.at());
            }
            let told = link.drive(around, endpoint, |around, to, bytes| {
                around.put(Way::Down, to, bytes);
            });
            for told in told {
                if let Told::Gone(_) = told {
                    self.remembered = link.record(BRANCH).or(self.remembered);
                }
                hand_on(around, *number, link, told);
            }
        }
        links.retain(|_, link| !link.is_drained());
    }
}

fn hand_on(around: &mut Around, number: u64, link: &mut LinkEnd, told: Told) {
    let arrival = match told {
        Told::Frame {
            stream,
            frame: Some(frame),
        } => {
            let request = Message::decode(&frame).expect("an honest branch's frames parse");
            link.set_class(stream, class_of(&request));
            Arrival::ToDatacenter {
                link: number,
                stream,
                frame,
            }
        }
        Told::Room { stream } => Arrival::Room {
            link: number,
            stream,
        },
        Told::Gone(reason) => {
            around.note(&reason);
            Arrival::Lost { link: number }
        }
        Told::Blocked => {
            around.tally.blocked += 1;
            return;
        }
        // A request's end says nothing that its one frame did not.
        Told::Up | Told::Frame { frame: None, .. } => return,
    };
    around.arrivals.push_back(arrival);
}
