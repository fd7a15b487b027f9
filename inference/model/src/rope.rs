//! Rotary position embedding (Su et al. 2021) over neighbouring pairs, the order in which GGUF files keep Llama's heads.

/// Cosines and sines of every position up to the context's end.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[position][pair]`, cosine and sine.
    turns: Vec<(f32, f32)>,
    pairs: usize,
}

impl Rope {
    /// Angles are computed in f64, so that far positions lose nothing.
    pub(crate) fn new(base: f32, head: usize, context: usize) -> Self {
        let pairs = head / 2;
        let frequency = |pair: usize| f64::from(base).powf(-2.0 * pair as f64 / head as f64);
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let turn = |position: usize, frequency: f64| {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            (cosine as f32, sine as f32)
        };
        let turns = (0..context).flat_map(|position| frequencies.iter().map(move |&f| turn(position, f))).collect();
        Self { turns, pairs }
    }

    /// Turns heads that lie one after the other at `position`, in place.
    pub(crate) fn turn(&self, position: usize, heads: &mut [f32]) {
        let turns = &self.turns[position * self.pairs..][..self.pairs];
        for head in heads.chunks_exact_mut(2 * self.pairs) {
            for (pair, &(cosine, sine)) in head.chunks_exact_mut(2).zip(turns) {
                let (x, y) = (pair[0], pair[1]);
                pair[0] = x * cosine - y * sine;
                pair[1] = x * sine + y * cosine;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_depend_on_the_distance_alone() {
        let rope = Rope::new(10_000.0, 8, 64);
        let product = |query_at, key_at| {
            let mut query = [0.3, -1.0, 0.5, 2.0, 0.1, 0.2, -0.4, 0.9];
            let mut key = [1.0, 0.4, -0.3, 0.8, 0.6, -0.7, 0.2, 0.5];
            rope.turn(query_at, &mut query);
            rope.turn(key_at, &mut key);
            query.iter().zip(&key).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((product(5, 2) - product(40, 37)).abs() < 1e-5);
        assert!((product(5, 2) - product(5, 3)).abs() > 1e-3);
    }

    #[test]
    fn position_0_changes_nothing() {
        let rope = Rope::new(100_000.0, 4, 1);
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rope.turn(0, &mut head);
        assert_eq!(head, [1.0, 2.0, 3.0, 4.0]);
    }
}
