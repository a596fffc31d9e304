//! Certificates: where they come from, until when they serve, and what their keys lie under.

mod acme;
mod at_rest;
mod clients;
mod constraints;
mod expiry;
mod export;
mod renewal;
mod rollover;
mod server;
