//! QUIC endpoints, TLS identity and stream priorities
