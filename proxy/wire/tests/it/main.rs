//! `wire` from the outside: tables of cases per boundary, and properties over seeded inputs.

#[path = "../../../fuzz/src/lib.rs"]
mod bodies;
mod chunked;
mod corpus;
mod encoded;
mod framing;
mod head;
mod properties;
mod rewrite;
mod rng;
mod target;
