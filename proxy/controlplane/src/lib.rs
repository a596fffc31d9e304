//! .

pub mod audit;
pub mod config;
pub mod credentials;
pub mod names;
pub mod pki;
pub mod publish;

#[cfg(test)]
mod test_support;
