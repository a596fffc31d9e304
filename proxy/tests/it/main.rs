//! Claviger's promises, each kept by the real binary: one file per promise. The
//! proxy, the mock API and the clients are processes of their own; nothing in here
//! shares a line with the code under test.
//!
//! `scripts/test --setup` installs the clients once; then
//! `cargo test --package claviger --test it` runs everything in here.

mod harness;

mod audit;
mod bodies;
mod callers;
mod certificates;
mod cli;
mod clients;
mod coded;
mod conformance;
mod differential;
mod docs;
mod doctor;
mod driver;
mod echo;
mod edge;
mod fire;
mod histories;
mod house;
mod hunt;
mod hygiene;
mod listener;
mod memory;
mod names;
mod office;
mod privileges;
mod prove;
mod reload;
mod routes;
mod shutdown;
mod strip;
mod upgrade;
mod upstream;
mod workers;
