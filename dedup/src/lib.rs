//! Content model of Splice: chunks, extents, manifests and their differences
