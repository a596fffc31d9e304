//! Benchmarks of the pure crates. Each file in `benches/` says how it is run and what it compares.
