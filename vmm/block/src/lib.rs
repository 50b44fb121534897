//! Block devices and their exports to guests
