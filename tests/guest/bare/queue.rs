//! A split queue (virtio 1.2, section 2.7). Chains are put in and waited for in any number; their descriptors are used in turn.

use core::sync::atomic::{Ordering, fence};

use crate::clock;
use crate::memory::Piece;
use crate::report::Wrong;
use crate::start;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const DESCRIPTOR_BYTES: usize = 16;
const AVAILABLE_AT: usize = 4096;
const USED_AT: usize = 8192;
const BYTES: usize = 3 * 4096;

/// A part of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    at: u64,
    len: u32,
    writable: bool,
}

/// What the device reads: `len` bytes of a piece from `at` on.
pub fn gives(piece: Piece, at: usize, len: usize) -> Part {
    assert!(at + len <= piece.len());
    Part { at: piece.address() + at as u64, len: len as u32, writable: false }
}

/// What the device writes.
pub fn takes(piece: Piece, at: usize, len: usize) -> Part {
    Part { writable: true, ..gives(piece, at, len) }
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// What [`Queue::put`] told.
    pub head: u16,
    /// Bytes that were written.
    pub written: u32,
}

/// See the module.
pub struct Queue {
    memory: Piece,
    size: u16,
    notify: usize,
    index: u16,
    /// Number of the vector that tells of answers.
    vector: Option<usize>,
    event_idx: bool,
    descriptor: u16,
    available: u16,
    used: u16,
    /// Interrupts that were seen, and whether one has come since the used ring was found empty.
    seen: u32,
    is_told: bool,
}

impl Queue {
    pub fn new(index: u16, size: u16, notify: usize, vector: Option<usize>, event_idx: bool) -> Self {
        assert!(size.is_power_of_two() && size <= 128);
        Self {
            memory: Piece::take(BYTES),
            size,
            notify,
            index,
            vector,
            event_idx,
            descriptor: 0,
            available: 0,
            used: 0,
            seen: vector.map_or(0, start::interrupts),
            is_told: false,
        }
    }

    /// Addresses of descriptors, available and used ring.
    pub fn places(&self) -> [u64; 3] {
        [0, AVAILABLE_AT, USED_AT].map(|at| self.memory.address() + at as u64)
    }

    /// Puts a chain in, without telling the device; the answer has its head. Chains in work together have fewer parts than the queue has
    /// entries.
    pub fn put(&mut self, parts: &[Part]) -> u16 {
        let head = self.descriptor % self.size;
        for (number, part) in parts.iter().enumerate() {
            let here = self.descriptor % self.size;
            self.descriptor = self.descriptor.wrapping_add(1);
            let place = usize::from(here) * DESCRIPTOR_BYTES;
            let next = if number + 1 < parts.len() { NEXT } else { 0 };
            let write = if part.writable { WRITE } else { 0 };
            self.memory.write(place, part.at);
            self.memory.write(place + 8, part.len);
            self.memory.write(place + 12, next | write);
            self.memory.write(place + 14, self.descriptor % self.size);
        }
        let entry = AVAILABLE_AT + 4 + 2 * usize::from(self.available % self.size);
        self.memory.write(entry, head);
        self.available = self.available.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.memory.write(AVAILABLE_AT + 2, self.available);
        head
    }

    /// Tells the device, if it wants to be told.
    pub fn kick(&mut self) {
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event: u16 = self.memory.read(USED_AT + 4 + 8 * usize::from(self.size));
            // One chain is put in at a time, or all of them before the device looks for the first time.
            let passed = self.available.wrapping_sub(event).wrapping_sub(1);
            if passed >= self.size {
                return;
            }
        }
        // SAFETY: the queue's notification register.
        unsafe { (self.notify as *mut u16).write_volatile(self.index) };
    }

    fn take(&mut self) -> Option<Used> {
        // What the device was told last is there before this look.
        fence(Ordering::SeqCst);
        let index: u16 = self.memory.read(USED_AT + 2);
        fence(Ordering::SeqCst);
        if index == self.used {
            return None;
        }
        let entry = USED_AT + 4 + 8 * usize::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read(entry);
        let written = self.memory.read(entry + 4);
        if self.event_idx {
            // The next answer shall be told.
            self.memory.write(AVAILABLE_AT + 4 + 2 * usize::from(self.size), self.used);
        }
        Some(Used { head: head as u16, written })
    }

    /// Waits for the next answer.
    pub fn wait(&mut self) -> Result<Used, Wrong> {
        let Some(vector) = self.vector else {
            return clock::wait("an answer", || self.take());
        };
        loop {
            // One interrupt may tell of several answers, or of none, if they were taken with the one before.
            if self.is_told && let Some(used) = self.take() {
                return Ok(used);
            }
            let seen = self.seen;
            self.seen = clock::wait("an interrupt", || {
                let now = start::interrupts(vector);
                (now != seen).then_some(now)
            })?;
            self.is_told = true;
        }
    }

    /// Puts a chain in and waits for its answer: bytes that were written.
    pub fn ask(&mut self, parts: &[Part]) -> Result<u32, Wrong> {
        let head = self.put(parts);
        self.kick();
        let used = self.wait()?;
        if used.head == head {
            return Ok(used.written);
        }
        Err(Wrong { what: "an answer to something else", value: used.head.into() })
    }
}
