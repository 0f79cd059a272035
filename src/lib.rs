//! Karapace.
