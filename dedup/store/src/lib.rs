//! Chunk store (packs and index), the durable key-value store and the disk it stands on
