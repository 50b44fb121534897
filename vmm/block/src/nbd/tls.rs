//! TLS around one client's socket, usable by a reading and a writing thread at once.
//!
//! rustls keeps both directions in one value, so a lock guards it; it is held only while bytes are en- or decrypted,
//! never while a thread waits for the socket. Order on the wire is kept because only one thread at a time writes
//! (see `outbox`), and everything that leaves goes through [`TlsSink`].

use std::io::{self, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::{ServerConfig, ServerConnection};

use super::socket::Socket;

/// Ciphertext received at a time, bytes: one TLS record and its overhead.
const RECEIVE_BYTES: usize = 17 * 1024;

/// Plaintext encrypted at a time, bytes. Bounds the ciphertext held for a slow client.
const ENCRYPT_BYTES: usize = 64 * 1024;

struct Session {
    connection: Mutex<ServerConnection>,
    socket: Arc<Socket>,
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the handshake learned of the client.
pub(crate) struct Upgraded {
    pub(crate) source: TlsSource,
    pub(crate) sink: TlsSink,
    /// The client's own certificate (DER), if the configuration asked for one.
    pub(crate) certificate: Option<Vec<u8>>,
}

/// Runs the server side of a TLS handshake over `socket`; fails when `deadline` has passed.
pub(crate) fn accept(
    socket: Arc<Socket>,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> io::Result<Upgraded> {
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    connection.set_buffer_limit(Some(ENCRYPT_BYTES));
    let mut stream = DeadlineStream {
        socket: &socket,
        deadline,
    };
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    while connection.wants_write() {
        connection.write_tls(&mut stream)?;
    }
    let certificate = connection
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| certificate.to_vec());
    let session = Arc::new(Session {
        connection: Mutex::new(connection),
        socket,
    });
    Ok(Upgraded {
        source: TlsSource {
            session: Arc::clone(&session),
            cipher: vec![0; RECEIVE_BYTES],
            start: 0,
            end: 0,
        },
        sink: TlsSink {
            session,
            cipher: Vec::new(),
            sent: 0,
        },
        certificate,
    })
}

struct DeadlineStream<'a> {
    socket: &'a Socket,
    deadline: Instant,
}

impl DeadlineStream<'_> {
    fn check(&self) -> io::Result<()> {
        if Instant::now() >= self.deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the TLS handshake took too long",
            ));
        }
        Ok(())
    }
}

impl Read for DeadlineStream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.socket.receive(buf)
    }
}

impl Write for DeadlineStream<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.socket.send(&[IoSlice::new(buf)], true)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The receiving direction.
pub(crate) struct TlsSource {
    session: Arc<Session>,
    /// Ciphertext that came and was not yet given to rustls: `cipher[start..end]`.
    cipher: Vec<u8>,
    start: usize,
    end: usize,
}

impl TlsSource {
    /// As [`Socket::receive`], in plaintext.
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            {
                let mut connection = self.session.lock();
                loop {
                    match connection.reader().read(buf) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        done => return done,
                    }
                    // Fed only while no plaintext waits, so rustls' own limit on plaintext is never met.
                    if self.start == self.end {
                        break;
                    }
                    let mut waiting = &self.cipher[self.start..self.end];
                    let taken = connection.read_tls(&mut waiting)?;
                    self.start += taken;
                    connection
                        .process_new_packets()
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    if taken == 0 {
                        return Ok(0);
                    }
                }
            }
            self.start = 0;
            self.end = 0;
            self.end = self.session.socket.receive(&mut self.cipher)?;
            if self.end == 0 {
                // An end without TLS' own goodbye: to NBD it is a client that is gone either way.
                return Ok(0);
            }
        }
    }
}

/// The sending direction.
pub(crate) struct TlsSink {
    session: Arc<Session>,
    /// Ciphertext that the socket has not yet taken: `cipher[sent..]`.
    cipher: Vec<u8>,
    sent: usize,
}

impl TlsSink {
    /// Encrypts some of the slices and sends what the socket takes. `WouldBlock` is only returned with nothing taken.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        self.finish(wait)?;
        let mut taken = 0;
        {
            let mut connection = self.session.lock();
            for slice in slices {
                let room = ENCRYPT_BYTES - taken;
                let piece = &slice[..slice.len().min(room)];
                let written = connection.writer().write(piece)?;
                taken += written;
                if written < slice.len() {
                    break;
                }
            }
            Self::take_cipher(&mut connection, &mut self.cipher)?;
        }
        match self.finish(wait) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !wait => Ok(taken),
            done => done.map(|()| taken),
        }
    }

    /// Sends the rest of the ciphertext.
    pub(crate) fn finish(&mut self, wait: bool) -> io::Result<()> {
        while self.sent < self.cipher.len() {
            self.sent += self
                .session
                .socket
                .send(&[IoSlice::new(&self.cipher[self.sent..])], wait)?;
        }
        self.cipher.clear();
        self.sent = 0;
        Ok(())
    }

    fn take_cipher(connection: &mut ServerConnection, cipher: &mut Vec<u8>) -> io::Result<()> {
        while connection.wants_write() {
            connection.write_tls(cipher)?;
        }
        Ok(())
    }

    /// Tells the client that nothing more comes, if it takes that at once, and ends the socket.
    pub(crate) fn close(&mut self) {
        {
            let mut connection = self.session.lock();
            connection.send_close_notify();
            let _ = Self::take_cipher(&mut connection, &mut self.cipher);
        }
        let _ = self.finish(false);
        self.session.socket.cut();
    }
}
