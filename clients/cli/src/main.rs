//! `volley`: every role and every verb in one binary.
fn main() {}
