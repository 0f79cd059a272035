//! The `karapace` program.
fn main() {}
