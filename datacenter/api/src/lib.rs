//! Management API types and typed client
