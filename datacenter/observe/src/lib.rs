//! What both daemons tell of themselves, apart from their APIs: metrics, logs, health and support bundles.
//!
//! Each daemon owns a table of its metric families ([`family`]) and fills it at each scrape ([`samples`]) from figures that its parts keep
//! anyway, so that nothing is counted twice and nothing on a guest's path knows of metrics. Logs go to standard error and their end stays in
//! memory ([`logs`]); a support bundle ([`support`]) is put together from that and from what the APIs show, and no text leaves in one that
//! did not go through [`redact`]. It decides nothing: what healthy or ready means is the daemons'.

pub mod document;
pub mod family;
pub mod http;
pub mod logs;
pub mod redact;
pub mod samples;
pub mod support;
