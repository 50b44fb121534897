//! The sandbox from outside and from inside: what a hostile guest would try, and that a machine works all the same.

#![allow(clippy::unwrap_used, missing_docs)]

mod attempts;
mod guest;
mod handed;
mod machine;
mod tap;
