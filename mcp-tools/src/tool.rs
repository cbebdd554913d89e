//! Tool kinds: how a definition's operation becomes a request, and its answer a result.

pub(crate) mod http;
