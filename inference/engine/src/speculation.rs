//! How many guessed tokens a step checks: as many as are worth their time.
//!
//! A step costs a fixed time and something for every row; both are measured. A guess is worth its row if the tokens that it is likely to
//! yield for its time are more than what the step yields without it. So there are many where a step's fixed part is what costs
//! (few requests, a large model, a GPU), and none where rows are.

use std::time::Duration;

/// The most tokens that are guessed at once for one reply: with the one before them eight rows, for which devices are warmed.
pub(crate) const MOST_GUESSED: usize = 7;
/// Steps over which a measurement counts half.
const MEMORY: f64 = 0.97;
/// The cost of a row, in steps of one row, before it was measured.
const UNMEASURED_ROW: f64 = 0.3;
/// The least that a row is taken to cost, in steps: no row is free.
const LEAST_ROW: f64 = 0.02;
/// What must be gained at least, since chances and costs are estimates.
const MARGIN: f64 = 1.15;

/// Whether replies are guessed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Speculation {
    /// Where it is measured to save time.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Wherever there is a guess, whatever it costs. For tests and measurements.
    Always,
}

impl std::str::FromStr for Speculation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("is unknown. Choose auto or off"),
        }
    }
}

impl std::fmt::Display for Speculation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Always => "always",
        })
    }
}

/// The time of a step by its rows: a line through what was measured, older steps counting less.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowCost {
    weight: f64,
    /// Means of rows, of seconds, of the squares of rows, and of their product.
    rows: f64,
    seconds: f64,
    squares: f64,
    products: f64,
}

impl RowCost {
    pub(crate) fn measure(&mut self, rows: usize, time: Duration) {
        let (rows, seconds) = (rows as f64, time.as_secs_f64());
        self.weight = self.weight * MEMORY + 1.0;
        let share = 1.0 / self.weight;
        for (mean, value) in [
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.squares, rows * rows),
            (&mut self.products, rows * seconds),
        ] {
            *mean += (value - *mean) * share;
        }
    }

    /// What a step of so many rows takes, and what one more adds.
    fn of(&self, rows: usize) -> (f64, f64) {
        let variance = self.squares - self.rows * self.rows;
        let slope = (self.products - self.rows * self.seconds) / variance;
        let alone = self.seconds / (1.0 + UNMEASURED_ROW * (self.rows - 1.0));
        // Steps that hardly differed say little of what rows cost; and none costs more than the mean of all.
        let row = if variance < 0.05 { alone * UNMEASURED_ROW } else { slope };
        let mean = self.seconds / self.rows.max(1.0);
        let row = row.max(self.seconds * LEAST_ROW).min(mean);
        ((self.seconds + row * (rows as f64 - self.rows)).max(row * rows as f64), row)
    }
}

/// How many tokens of each guess a step of so many `rows` and yet more checks. `chances` says of each guess how probable it is that its
/// first tokens are right, one by one. No more than `most` rows are added.
pub(crate) fn depths(
    speculation: Speculation,
    cost: &RowCost,
    rows: usize,
    most: usize,
    chances: &[Vec<f64>],
) -> Vec<usize> {
    let (mut time, row) = cost.of(rows);
    let (mut yielded, mut added) = (rows as f64, 0);
    let mut pays = |chance: f64| {
        let is_worth_it = match speculation {
            Speculation::Auto => chance * time > MARGIN * row * yielded,
            Speculation::Always => true,
            Speculation::Off => false,
        };
        if is_worth_it && added < most {
            (added, time, yielded) = (added + 1, time + row, yielded + chance);
            return true;
        }
        false
    };
    let mut depths = vec![0; chances.len()];
    // By depth: what is deeper is less probable.
    for depth in 0..MOST_GUESSED {
        for (chosen, chances) in depths.iter_mut().zip(chances) {
            if *chosen == depth && chances.get(depth).is_some_and(|chance| pays(*chance)) {
                *chosen += 1;
            }
        }
    }
    depths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model whose steps take `fixed` and `row` milliseconds, measured.
    fn measured(fixed: f64, row: f64) -> RowCost {
        let mut cost = RowCost::default();
        for rows in (1..=8).cycle().take(200) {
            cost.measure(rows, Duration::from_secs_f64((fixed + row * rows as f64) / 1e3));
        }
        cost
    }

    fn depth(cost: &RowCost, rows: usize, chance: f64) -> usize {
        let chances = (1..=MOST_GUESSED as i32).map(|ahead| chance.powi(ahead)).collect();
        depths(Speculation::Auto, cost, rows, 100, &[chances])[0]
    }

    #[test]
    fn the_cost_of_rows_is_measured() {
        let (time, row) = measured(2.0, 1.0).of(5);
        assert!((time - 7e-3).abs() < 1e-6 && (row - 1e-3).abs() < 1e-6, "{time}, {row}");
    }

    #[test]
    fn what_is_probable_is_guessed_where_rows_cost_little() {
        let cheap = measured(10.0, 0.1);
        assert_eq!(depth(&cheap, 1, 0.95), MOST_GUESSED);
        assert!((1..MOST_GUESSED).contains(&depth(&cheap, 1, 0.5)));
        assert_eq!(depth(&cheap, 1, 0.005), 0);
    }

    #[test]
    fn nothing_is_guessed_where_rows_are_what_costs() {
        let cost = measured(2.0, 1.0);
        assert!(depth(&cost, 1, 0.9) >= 3, "one request");
        assert_eq!(depth(&cost, 1, 0.3), 0);
        assert_eq!(depth(&cost, 64, 0.9), 0, "many");
    }

    #[test]
    fn the_best_number_of_guesses_is_chosen() {
        // Against all depths: the most expected tokens for the time, but for the margin.
        for (fixed, row, chance) in [(2.0, 1.0, 0.9), (2.0, 0.5, 0.8), (3.0, 0.2, 0.9), (1.0, 0.9, 0.99)] {
            let yielded = |depth: usize| (0..=depth).map(|ahead| f64::powi(chance, ahead as i32)).sum::<f64>();
            let rate = |depth: usize| yielded(depth) / (fixed + row * (depth + 1) as f64);
            let best = (0..=MOST_GUESSED).map(rate).fold(0.0, f64::max);
            let chosen = rate(depth(&measured(fixed, row), 1, chance));
            assert!(chosen > best / MARGIN, "{fixed}, {row}, {chance}: {chosen} of {best}");
        }
    }

    #[test]
    fn rows_have_a_bound() {
        let cost = measured(10.0, 0.1);
        let sure = |length| vec![1.0; length];
        for speculation in [Speculation::Auto, Speculation::Always] {
            assert_eq!(depths(speculation, &cost, 3, 5, &[sure(9), sure(1), sure(0), sure(9)]), [2, 1, 0, 2]);
            assert_eq!(depths(speculation, &cost, 3, 0, &[sure(9)]), [0]);
        }
        assert_eq!(depths(Speculation::Off, &cost, 3, 5, &[sure(9)]), [0]);
    }

    #[test]
    fn equal_steps_and_none_tell_little() {
        let mut cost = RowCost::default();
        assert_eq!(depth(&cost, 1, 0.9), 0, "nothing was measured");
        for _ in 0..50 {
            cost.measure(1, Duration::from_millis(4));
        }
        assert_eq!(depth(&cost, 1, 0.3), 0);
        assert!(depth(&cost, 1, 0.9) > 0);
    }
}
