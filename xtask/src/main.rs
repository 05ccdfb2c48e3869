//! Rules that are programs.
fn main() {}
