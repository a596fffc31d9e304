//! .

pub mod audit;
pub mod credentials;
pub mod names;
pub mod pki;

#[cfg(test)]
mod test_support;
