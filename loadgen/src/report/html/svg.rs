//! Plots as inline SVG: axes, curves, a heat map, intervals. Colours come from the document's style
//! sheet by class, so that a plot follows the reader's light or dark mode.

use std::fmt::Write as _;

use super::{Escaped, amount, span};

/// A plot under construction: a frame with axes and what is drawn in it.
pub struct Plot {
    out: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// How a value becomes a place between 0 and 1.
#[derive(Clone, Copy, Debug)]
pub enum Scale {
    /// Evenly.
    Linear { low: f64, high: f64 },
    /// By ratio. Both ends above zero.
    Log { low: f64, high: f64 },
    /// Evenly near zero and by ratio far from it; `knee` is where one becomes the other.
    Signed { low: f64, high: f64, knee: f64 },
}

impl Scale {
    /// The place of a value; beyond the ends it stays at them.
    pub fn place(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear { low, high } => (value - low) / (high - low),
            Self::Log { low, high } => (value.max(low) / low).ln() / (high / low).ln(),
            Self::Signed { low, high, knee } => {
                let bend = |v: f64| v.signum() * (v.abs() / knee).ln_1p();
                (bend(value) - bend(low)) / (bend(high) - bend(low))
            }
        };
        match share.is_finite() {
            true => share.clamp(0.0, 1.0),
            false => 0.0,
        }
    }

    /// Round values within the scale, about `wanted` of them.
    pub fn ticks(self, wanted: usize) -> Vec<f64> {
        let decades = || (-3..14).map(|exponent| 10f64.powi(exponent));
        match self {
            Self::Linear { low, high } => {
                let step = round_step((high - low) / wanted.max(1) as f64);
                let first = (low / step).ceil() as i64;
                let last = (high / step + 1e-9).floor() as i64;
                (first..=last).map(|n| n as f64 * step).collect()
            }
            Self::Log { low, high } => {
                // The fewer decades there are, the more of each is marked.
                let steps: &[f64] = match (high / low).log10() {
                    d if d > wanted as f64 * 0.75 => &[1.0],
                    d if d > 1.6 => &[1.0, 3.0],
                    d if d > 0.7 => &[1.0, 2.0, 5.0],
                    _ => &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
                };
                decades()
                    .flat_map(|decade| steps.iter().map(move |step| step * decade))
                    .filter(|tick| (low..=high).contains(tick))
                    .collect()
            }
            Self::Signed { low, high, knee } => {
                let far = || decades().filter(|tick| *tick >= knee);
                let below = far().map(|tick| -tick);
                let mut ticks: Vec<f64> = below
                    .chain([0.0])
                    .chain(far())
                    .filter(|tick| (low..=high).contains(tick))
                    .collect();
                ticks.sort_by(f64::total_cmp);
                ticks
            }
        }
    }
}

/// Half of what a character of a label takes, in units of the plot: of the widest labels
/// that there are, such as `+10 ms`.
const LABEL_HALF: f64 = 4.2;

/// 1, 2 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let step = step.max(1e-9);
    let decade = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * decade)
        .find(|round| *round >= step * 0.999)
        .unwrap_or(10.0 * decade)
}

impl Plot {
    /// A plot with room for axes on its left and below. `about` describes it to those who do not
    /// see it.
    pub fn new(width: f64, height: f64, left: f64, about: &str) -> Self {
        let mut out = String::new();
        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>",
            Escaped(about)
        );
        Self {
            out,
            width,
            height,
            left,
            right: 12.0,
            top: 8.0,
            bottom: 34.0,
        }
    }

    /// The horizontal place of a share of the frame.
    pub fn x(&self, share: f64) -> f64 {
        self.left + share * (self.width - self.left - self.right)
    }

    /// The vertical place; shares grow upwards.
    pub fn y(&self, share: f64) -> f64 {
        self.height - self.bottom - share * (self.height - self.top - self.bottom)
    }

    /// Marks times on the vertical axis.
    pub fn y_times(&mut self, scale: Scale, ticks: usize) {
        let shown = scale.ticks(ticks);
        self.y_marks(scale, &shown, span);
    }

    /// Marks plain amounts on the vertical axis.
    pub fn y_amounts(&mut self, scale: Scale, ticks: usize) {
        let shown = scale.ticks(ticks);
        self.y_marks(scale, &shown, amount);
    }

    fn y_marks(&mut self, scale: Scale, ticks: &[f64], label: impl Fn(f64) -> String) {
        let mut last = f64::INFINITY;
        for &tick in ticks {
            let y = self.y(scale.place(tick));
            let (from, to) = (self.x(0.0), self.x(1.0));
            let _ = write!(
                self.out,
                "<path class=\"grid\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>"
            );
            // Two labels never touch.
            if last - y >= 14.0 {
                last = y;
                self.text(from - 6.0, y + 4.0, "end", &label(tick));
            }
        }
    }

    /// Marks places on the horizontal axis, with a title beneath.
    pub fn x_marks(&mut self, marks: &[(f64, String)], title: &str) {
        let mut free_from = f64::NEG_INFINITY;
        let (top, bottom) = (self.y(1.0), self.y(0.0));
        for (share, label) in marks {
            let x = self.x(*share);
            let _ = write!(
                self.out,
                "<path class=\"grid\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>"
            );
            let half = label.chars().count() as f64 * LABEL_HALF;
            // At the frame's right end a label leans inwards.
            let middle = x.min(self.width - half - 1.0);
            if middle - half >= free_from {
                free_from = middle + half + 6.0;
                self.text(middle, bottom + 16.0, "middle", label);
            }
        }
        let middle = self.x(0.5);
        let below = self.height - 3.0;
        if !title.is_empty() {
            let _ = write!(
                self.out,
                "<text class=\"axis\" x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>",
                Escaped(title)
            );
        }
    }

    /// A line through points; `None` interrupts it.
    pub fn line(&mut self, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
        let mut path = String::new();
        let mut command = 'M';
        let mut alone = None;
        for point in points {
            let Some((x, y)) = point else {
                // A point between two gaps would not be seen.
                if let Some((x, y)) = alone.take() {
                    let _ = write!(path, "M{:.1} {y:.1}h3", x - 1.5);
                }
                command = 'M';
                continue;
            };
            let (x, y) = (self.x(x), self.y(y));
            alone = (command == 'M').then_some((x, y));
            let _ = write!(path, "{command}{x:.1} {y:.1}");
            command = 'L';
        }
        if let Some((x, y)) = alone {
            let _ = write!(path, "M{:.1} {y:.1}h3", x - 1.5);
        }
        let _ = write!(self.out, "<path class=\"line {class}\" d=\"{path}\"/>");
    }

    /// A filled rectangle between two corners, given as shares.
    pub fn rectangle(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let (x, y) = (self.x(from.0), self.y(to.1));
        let (w, h) = (self.x(to.0) - x, self.y(from.1) - y);
        let _ = write!(
            self.out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"/>"
        );
    }

    /// Rectangles of one look in one path, given by column and row of an even grid.
    pub fn cells(
        &mut self,
        class: &str,
        (columns, rows): (usize, usize),
        cells: impl Iterator<Item = (usize, usize)>,
    ) {
        let (w, h) = (1.0 / columns as f64, 1.0 / rows as f64);
        let mut path = String::new();
        // A little overlap hides the seams that rounding leaves.
        let width = self.x(w) - self.x(0.0) + 0.3;
        let height = self.y(0.0) - self.y(h) + 0.3;
        for (column, row) in cells {
            let (x, y) = (self.x(column as f64 * w), self.y((row + 1) as f64 * h));
            let _ = write!(path, "M{x:.1} {y:.1}h{width:.1}v{height:.1}h-{width:.1}z");
        }
        if !path.is_empty() {
            let _ = write!(self.out, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    /// A horizontal interval with a mark at its value.
    pub fn interval(&mut self, class: &str, y: f64, (low, value, high): (f64, f64, f64)) {
        let (low, value, high) = (self.x(low), self.x(value), self.x(high));
        let y = self.y(y);
        let _ = write!(
            self.out,
            "<path class=\"interval {class}\" d=\"M{low:.1} {y:.1}H{high:.1}M{low:.1} {0:.1}v10M{high:.1} {0:.1}v10\"/>\
             <circle class=\"mark {class}\" cx=\"{value:.1}\" cy=\"{y:.1}\" r=\"5\"/>",
            y - 5.0
        );
    }

    /// A mark at a place given as shares: a disc for what held, a cross for what failed.
    pub fn mark(&mut self, held: bool, x: f64, y: f64) {
        let (x, y) = (self.x(x), self.y(y));
        let _ = match held {
            true => write!(
                self.out,
                "<circle class=\"mark held\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"
            ),
            false => write!(
                self.out,
                "<path class=\"cross\" d=\"M{0:.1} {1:.1}l9 9m0 -9l-9 9\"/>",
                x - 4.5,
                y - 4.5
            ),
        };
    }

    /// A vertical line through the whole frame.
    pub fn upright(&mut self, class: &str, share: f64) {
        let (x, top, bottom) = (self.x(share), self.y(1.0), self.y(0.0));
        let _ = write!(
            self.out,
            "<path class=\"{class}\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>"
        );
    }

    /// A text within the plot.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let _ = write!(
            self.out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            Escaped(text)
        );
    }

    /// The finished plot. `readings` are what the script shows for the nearest place under the
    /// pointer: a share of the width and a text each.
    pub fn finish(mut self, readings: &[(f64, String)]) -> String {
        if readings.is_empty() {
            self.out.push_str("</svg>");
            return self.out;
        }
        let (top, bottom) = (self.y(1.0), self.y(0.0));
        let _ = write!(
            self.out,
            "<path class=\"cursor\" d=\"M0 {top:.1}V{bottom:.1}\" visibility=\"hidden\"/></svg>"
        );
        let places: Vec<f64> = readings
            .iter()
            .map(|(share, _)| (self.x(*share) * 10.0).round() / 10.0)
            .collect();
        let texts: Vec<&str> = readings.iter().map(|(_, text)| text.as_str()).collect();
        let data = serde_json::json!({ "x": places, "text": texts }).to_string();
        // Within a script element nothing but `<` can end it.
        let data = data.replace('<', "\\u003c");
        let _ = write!(
            self.out,
            "<output class=\"reading\" aria-hidden=\"true\">&nbsp;</output>\
             <script type=\"application/json\">{data}</script>"
        );
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let linear = Scale::Linear {
            low: 0.0,
            high: 5100.0,
        };
        assert_eq!(linear.ticks(5), [0.0, 2000.0, 4000.0]);
        let log = Scale::Log {
            low: 80e3,
            high: 30e6,
        };
        assert_eq!(log.ticks(6), [1e5, 3e5, 1e6, 3e6, 1e7, 3e7]);
        let signed = Scale::Signed {
            low: -2e4,
            high: 3e6,
            knee: 5e3,
        };
        assert_eq!(signed.ticks(5), [-1e4, 0.0, 1e4, 1e5, 1e6]);
    }

    #[test]
    fn a_label_at_the_end_leans_inwards() {
        let mut plot = Plot::new(100.0, 50.0, 10.0, "a plot");
        plot.x_marks(&[(1.0, "+10 ms".to_owned())], "");
        // The frame ends at 88; six characters of 8.4 end a little before 100.
        assert!(plot.finish(&[]).contains("x=\"73.8\""));
    }

    #[test]
    fn places_are_shares_even_of_nonsense() {
        for scale in [
            Scale::Linear {
                low: 0.0,
                high: 0.0,
            },
            Scale::Log {
                low: 1.0,
                high: 1.0,
            },
            Scale::Signed {
                low: -1.0,
                high: 1.0,
                knee: 0.1,
            },
        ] {
            for value in [
                f64::NEG_INFINITY,
                -1.0,
                0.0,
                0.5,
                1.0,
                f64::INFINITY,
                f64::NAN,
            ] {
                assert!(
                    (0.0..=1.0).contains(&scale.place(value)),
                    "{scale:?} {value}"
                );
            }
        }
        assert_eq!(
            Scale::Log {
                low: 1.0,
                high: 100.0
            }
            .place(10.0),
            0.5
        );
    }
}
