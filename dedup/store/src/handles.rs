//! The open pack files that readers share, bounded in number.
//!
//! It does not check anything about the files: records prove themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::disk::DiskFile;
use crate::error::StoreError;
use crate::pack::PackNumber;

#[derive(Default)]
struct Open {
    /// Pack → file and when it was last used.
    files: HashMap<PackNumber, (Arc<dyn DiskFile>, u64)>,
    clock: u64,
}

/// Open files by pack; the least recently used one is closed when there are too many.
pub(crate) struct Handles {
    max: usize,
    open: Mutex<Open>,
}

impl Handles {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            open: Mutex::default(),
        }
    }

    /// The file of `pack`, opened with `open` if it is not open. Two threads may open the same one; both handles are good.
    pub(crate) fn file(
        &self,
        pack: PackNumber,
        open: impl FnOnce() -> Result<Arc<dyn DiskFile>, StoreError>,
    ) -> Result<Arc<dyn DiskFile>, StoreError> {
        {
            let mut state = self.state();
            state.clock += 1;
            let now = state.clock;
            if let Some((file, used)) = state.files.get_mut(&pack) {
                *used = now;
                return Ok(file.clone());
            }
        }
        let file = open()?;
        self.insert(pack, file.clone());
        Ok(file)
    }

    pub(crate) fn insert(&self, pack: PackNumber, file: Arc<dyn DiskFile>) {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        state.files.insert(pack, (file, now));
        if state.files.len() > self.max {
            let oldest = state.files.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(pack, _)| *pack) {
                state.files.remove(&oldest);
            }
        }
    }

    /// Closes the file of a pack that is removed, so that its space is given back.
    pub(crate) fn forget(&self, pack: PackNumber) {
        self.state().files.remove(&pack);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open
            .lock()
            .expect("no code panics while it holds the handles")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::{Disk, HostDisk, Open};

    #[test]
    fn the_least_recently_used_file_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = HostDisk::new(dir.path()).unwrap();
        disk.open("f", Open::CreateNew).unwrap();
        let handles = Handles::new(2);
        let opened = std::cell::Cell::new(0);
        let read = |pack| {
            let open = || {
                opened.set(opened.get() + 1);
                disk.open("f", Open::Read)
                    .map_err(|e| StoreError::io("f", e))
            };
            handles.file(PackNumber(pack), open).unwrap();
            (opened.get(), handles.state().files.len())
        };
        assert_eq!(read(1), (1, 1));
        assert_eq!(read(2), (2, 2));
        assert_eq!(read(1), (2, 2));
        assert_eq!(read(3), (3, 2), "pack 2 is closed");
        assert_eq!(read(1), (3, 2));
        assert_eq!(read(2), (4, 2));
    }
}
