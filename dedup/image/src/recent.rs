//! A small least-recently-used set. Lookups are linear, which for the dozen entries kept here beats hashing.

/// Up to `capacity` values by key, the most recently used first.
pub(crate) struct Recent<V> {
    entries: Vec<(u64, V)>,
    capacity: usize,
}

impl<V> Recent<V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            capacity: capacity.max(1),
        }
    }

    /// The value of `key`, which becomes the most recently used.
    pub(crate) fn find(&mut self, key: u64) -> Option<&V> {
        let at = self.entries.iter().position(|(k, _)| *k == key)?;
        self.entries[..=at].rotate_right(1);
        Some(&self.entries[0].1)
    }

    /// Adds a value that [`Self::find`] did not find; the least recently used one makes room.
    pub(crate) fn insert(&mut self, key: u64, value: V) -> &V {
        if self.entries.len() >= self.capacity {
            self.entries.pop();
        }
        self.entries.insert(0, (key, value));
        &self.entries[0].1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut recent = Recent::new(2);
        recent.insert(1, 'a');
        recent.insert(2, 'b');
        assert_eq!(recent.find(1), Some(&'a'));
        recent.insert(3, 'c');
        assert_eq!(recent.find(2), None);
        assert_eq!(recent.find(1), Some(&'a'));
        assert_eq!(recent.find(3), Some(&'c'));
    }
}
