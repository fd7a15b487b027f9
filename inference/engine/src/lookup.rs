//! Guesses how a reply goes on, from what prompt and reply have said before (prompt lookup: Saxena 2023, after "Inference with Reference",
//! Yang et al. 2023): where the last tokens occurred earlier, what followed them then may follow again.
//!
//! The guess is compared with every token that comes, whether the model was asked to check it or not. So it is known at no cost how
//! often guesses are right, and a text that repeats nothing is never charged for them.

use crate::TokenId;

/// The fewest tokens that must have occurred before.
const SHORTEST: usize = 2;
/// Of longer matches it does not matter how long they are.
const LONGEST: usize = 8;
/// How often a guess is taken to be right, by the length of the match, before the reply has shown it.
const USUALLY_RIGHT: [f64; LONGEST - SHORTEST + 1] = [0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8];
/// Weight of the newest token in what a reply has shown.
const NEWEST: f64 = 0.15;

/// One reply's guesses.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    source: Option<Source>,
    right: [f64; USUALLY_RIGHT.len()],
}

/// Where the text was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    /// What followed there: the guess for the next token.
    next: usize,
    /// How many tokens before it are the same as those before the end.
    matched: usize,
}

impl Lookup {
    /// For a reply that goes on behind `tokens`.
    pub(crate) fn behind(tokens: &[TokenId]) -> Self {
        Self { source: find(tokens), right: USUALLY_RIGHT }
    }

    /// Takes note that the last of `tokens` is new: whether it was guessed, and what is guessed next.
    pub(crate) fn follow(&mut self, tokens: &[TokenId]) {
        let Some((last, before)) = tokens.split_last() else { return };
        if let Some(source) = &mut self.source {
            let is_right = before.get(source.next) == Some(last);
            let right = &mut self.right[class(source.matched)];
            *right += (f64::from(u8::from(is_right)) - *right) * NEWEST;
            if is_right {
                *source = Source { next: source.next + 1, matched: source.matched + 1 };
                return;
            }
        }
        self.source = find(tokens);
    }

    /// The next tokens, as far as there is a guess.
    pub(crate) fn guess<'a>(&self, tokens: &'a [TokenId]) -> &'a [TokenId] {
        self.source.and_then(|source| tokens.get(source.next..)).unwrap_or_default()
    }

    /// How probable it is that the next `ahead` tokens of the guess and the one behind them are all right.
    pub(crate) fn chance(&self, ahead: usize) -> f64 {
        let Some(Source { matched, .. }) = self.source else { return 0.0 };
        (matched..=matched + ahead).map(|matched| self.right[class(matched)]).product()
    }
}

fn class(matched: usize) -> usize {
    matched.clamp(SHORTEST, LONGEST) - SHORTEST
}

/// The earlier place that agrees longest with the end, the latest such.
fn find(tokens: &[TokenId]) -> Option<Source> {
    let last = tokens.last()?;
    let mut best: Option<Source> = None;
    for next in (SHORTEST..tokens.len()).rev().filter(|next| tokens[next - 1] == *last) {
        let matched = common_end(&tokens[..next], tokens);
        if matched >= SHORTEST && best.is_none_or(|best| matched > best.matched) {
            best = Some(Source { next, matched });
        }
        if matched >= LONGEST {
            break;
        }
    }
    best
}

/// How many tokens at their ends are the same, of those that matter.
fn common_end(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(LONGEST).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_what_followed_the_longest_and_latest_match() {
        for (tokens, guess) in [
            (&[][..], &[][..]),
            (&[1], &[]),
            (&[1, 2, 3], &[]),
            (&[1, 2, 3, 2], &[]),
            (&[1, 2, 3, 1, 2], &[3, 1, 2]),
            (&[1, 2, 3, 1, 2, 4, 1, 2], &[4, 1, 2]),
            (&[0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2], &[3, 9, 1, 2, 4, 0, 1, 2]),
            (&[5, 5, 5], &[5]),
        ] {
            assert_eq!(Lookup::behind(tokens).guess(tokens), guess, "{tokens:?}");
        }
    }

    #[test]
    fn goes_on_with_a_guess_that_is_right_and_looks_anew_after_one_that_is_not() {
        let mut tokens = vec![1, 2, 3, 4, 5, 6, 1, 2];
        let mut lookup = Lookup::behind(&tokens);
        for (next, guess) in [(3, &[4, 5, 6][..]), (4, &[5, 6]), (9, &[]), (1, &[]), (2, &[3, 4, 9])] {
            tokens.push(next);
            lookup.follow(&tokens);
            assert!(lookup.guess(&tokens).starts_with(guess), "behind {next}");
            assert_eq!(lookup.guess(&tokens).is_empty(), guess.is_empty(), "behind {next}");
        }
    }

    #[test]
    fn chances_follow_what_the_reply_has_shown() {
        let mut tokens: Vec<TokenId> = (0..40).collect();
        let mut lookup = Lookup::behind(&tokens);
        assert_eq!(lookup.chance(0), 0.0);
        for token in 0..40 {
            tokens.push(token);
            lookup.follow(&tokens);
        }
        assert!(lookup.chance(0) > 0.95 && lookup.chance(3) > 0.9, "{lookup:?}");
        assert!(lookup.chance(3) < lookup.chance(2));
        // From now on what two tokens promise is never kept.
        let before = lookup.right;
        for token in 0..19 {
            for token in [2 * token, 2 * token + 1, 99] {
                tokens.push(token);
                lookup.follow(&tokens);
            }
        }
        assert!(lookup.right[0] < 0.1 && before[0] > 0.2, "{lookup:?}");
    }
}
