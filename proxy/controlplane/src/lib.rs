//! .

pub mod audit;
pub mod config;
pub mod credentials;
pub mod names;
pub mod office;
pub mod pki;
pub mod publish;
mod supervise;
pub mod telemetry;
pub mod watch;

#[cfg(test)]
mod test_support;
