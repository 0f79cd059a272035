//! Content-addressed store.
#![forbid(unsafe_code)]
