//! Foreign disk images: sparse readers and inspection
