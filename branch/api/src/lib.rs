//! Branch-local API types and typed client
