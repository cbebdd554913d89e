//! The verbs of each kind of connection; a connection has its role's and no other.

pub(crate) mod admin;
pub(crate) mod api;
pub(crate) mod harness;
pub(crate) mod tools;
