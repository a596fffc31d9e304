//! Sizes of bodies: one, a list, or a distribution.
//!
//! A distribution is not sampled at random: [`DRAWS`] sizes are taken at evenly spaced quantiles, so
//! that every run sends the same sizes and their mean is that of the distribution.

/// How large bodies are.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    /// All alike.
    Fixed(u64),
    /// Each of these equally often.
    List(Vec<u64>),
    /// Each size from the first to the second equally often.
    Uniform(u64, u64),
    /// A log-normal distribution, cut off at a size.
    LogNormal {
        /// Half of the sizes lie below.
        median: u64,
        /// Standard deviation of the logarithm.
        sigma: f64,
        /// Larger sizes are replaced by this one.
        max: u64,
    },
}

/// What a size may look like.
pub const EXPECTED: &str = "a size such as 512 or \"10KiB\", or one of {uniform = [\"1KiB\", \"64KiB\"]}, \
    {list = [100, \"1MiB\"]}, {log_normal = {median = \"2KiB\", sigma = 1.0, max = \"1MiB\"}}";

/// Sizes drawn from a distribution.
pub const DRAWS: usize = 256;

/// Sizes of a list.
const LIST_MAX: usize = 1024;

/// A log-normal distribution without a `max` ends at this many times its median.
const MAX_OVER_MEDIAN: u64 = 1000;

impl Sizes {
    /// Checks the bounds of a uniform distribution.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn uniform(low: u64, high: u64) -> Result<Self, String> {
        if low > high {
            return Err("uniform takes the lower size first".into());
        }
        Ok(Self::Uniform(low, high))
    }

    /// Checks a list.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn list(sizes: Vec<u64>) -> Result<Self, String> {
        if sizes.is_empty() || sizes.len() > LIST_MAX {
            return Err(format!("the list is empty or longer than {LIST_MAX}"));
        }
        Ok(Self::List(sizes))
    }

    /// Checks the parameters of a log-normal distribution.
    ///
    /// # Errors
    /// A sentence with the cure.
    pub fn log_normal(median: u64, sigma: f64, max: Option<u64>) -> Result<Self, String> {
        if !(0.0..=5.0).contains(&sigma) || median == 0 {
            return Err("log_normal takes a median above zero and a sigma from 0 to 5".into());
        }
        let max = max.unwrap_or(median.saturating_mul(MAX_OVER_MEDIAN));
        Ok(Self::LogNormal { median, sigma, max })
    }

    /// The sizes that are sent, equally often.
    pub fn drawn(&self) -> Vec<u64> {
        let quantiles = (0..DRAWS).map(|n| (n as f64 + 0.5) / DRAWS as f64);
        match self {
            Self::Fixed(bytes) => vec![*bytes],
            Self::List(sizes) => sizes.clone(),
            Self::Uniform(low, high) => quantiles
                .map(|q| low + (q * (high - low + 1) as f64) as u64)
                .collect(),
            Self::LogNormal { median, sigma, max } => normal_at(quantiles)
                .into_iter()
                .map(|z| ((*median as f64 * (sigma * z).exp()).round() as u64).min(*max))
                .collect(),
        }
    }
}

/// The standard normal distribution at rising quantiles, by summing up its density.
fn normal_at(quantiles: impl Iterator<Item = f64>) -> Vec<f64> {
    const STEP: f64 = 1e-3;
    let density = |z: f64| (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let (mut z, mut sum) = (-8.0, 0.0);
    quantiles
        .map(|q| {
            while sum < q && z < 8.0 {
                sum += density(z + STEP / 2.0) * STEP;
                z += STEP;
            }
            z
        })
        .collect()
}

/// Parses `512`, `10KiB`, `1.5MB`.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * factor;
    (bytes <= BYTES_MAX && bytes.fract() == 0.0).then_some(bytes as u64)
}

/// The largest size: a tebibyte.
const BYTES_MAX: f64 = 1024.0 * 1024.0 * 1024.0 * 1024.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, want) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("10KiB", Some(10_240)),
            ("1.5 MB", Some(1_500_000)),
            ("10MiB", Some(10_485_760)),
            ("2GiB", Some(2_147_483_648)),
            ("1.5", None),
            ("x", None),
            ("5 apples", None),
            ("9999999GiB", None),
            ("-1", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }

    #[test]
    fn distributions_are_what_they_are_called() {
        let mean = |sizes: &[u64]| sizes.iter().sum::<u64>() as f64 / sizes.len() as f64;
        let uniform = Sizes::uniform(1000, 3000).unwrap().drawn();
        assert!((mean(&uniform) - 2000.0).abs() < 5.0);
        assert!(uniform[0] < 1010 && uniform[DRAWS - 1] > 2990);
        let normal = Sizes::log_normal(10_000, 0.5, None).unwrap().drawn();
        // The mean of a log-normal is median * exp(sigma^2 / 2).
        let want = 10_000.0 * (0.125f64).exp();
        assert!(
            (mean(&normal) / want - 1.0).abs() < 0.01,
            "{}",
            mean(&normal)
        );
        assert!((normal[DRAWS / 2] as f64 / 10_000.0 - 1.0).abs() < 0.01);
        let cut = Sizes::log_normal(10_000, 2.0, Some(20_000))
            .unwrap()
            .drawn();
        assert_eq!(cut[DRAWS - 1], 20_000);
        assert_eq!(Sizes::uniform(7, 7).unwrap().drawn()[0], 7);
    }
}
