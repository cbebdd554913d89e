//! The program `claviger`.
fn main() {}
