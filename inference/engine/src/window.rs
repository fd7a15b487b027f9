//! Which messages of a conversation fit the context.

use crate::{ChatMessage, ChatRole, EngineError, PromptBudget, ReplicaInfo};

/// Least text per token that a whole conversation is tried with before its end is: past it, encoding everything is wasted work.
const BYTES_PER_TOKEN: usize = 8;

/// A rendered prompt and how many messages it leaves out.
#[derive(Debug)]
pub(crate) struct Window<T> {
    pub(crate) prompt: T,
    pub(crate) dropped: usize,
}

/// Renders as much of `messages` as the context holds besides the reserve. `render` gives a prompt and its tokens.
///
/// A conversation that has to be cut begins with a message of the user, where that leaves more than the last message: templates
/// of several models refuse any other beginning. The work is bounded by the context, not by the conversation.
pub(crate) fn fit<'a, T>(
    messages: &'a [ChatMessage<'a>],
    budget: PromptBudget,
    info: &ReplicaInfo,
    render: impl Fn(&[ChatMessage<'a>]) -> Result<(T, u32), EngineError>,
) -> Result<Window<T>, EngineError> {
    let room = info.context_tokens.saturating_sub(budget.reserve);
    let exceeded = |prompt| EngineError::ContextExceeded {
        prompt,
        reserve: budget.reserve,
        context: info.context_tokens,
        model: info.name.clone(),
    };
    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
    if !budget.drop_oldest || bytes <= (room as usize).saturating_mul(BYTES_PER_TOKEN) {
        let (prompt, tokens) = render(messages)?;
        if tokens <= room {
            return Ok(Window { prompt, dropped: 0 });
        }
        if !budget.drop_oldest {
            return Err(exceeded(tokens));
        }
    }
    let cuts = Cuts::new(messages);
    let (mut prompt, tokens) = render(&cuts.keep(1))?;
    if tokens > room {
        return Err(exceeded(tokens));
    }
    // The most cuts kept that fit: steps of doubling length up, then halving.
    let (mut kept, mut step, mut growing) = (1, 1, true);
    while step > 0 {
        let wanted = kept + step;
        let fits = if wanted <= cuts.count() {
            let (longer, tokens) = render(&cuts.keep(wanted))?;
            (tokens <= room).then_some(longer)
        } else {
            None
        };
        growing &= fits.is_some();
        if let Some(longer) = fits {
            (prompt, kept) = (longer, wanted);
        }
        step = if growing { step * 2 } else { step / 2 };
    }
    Ok(Window { prompt, dropped: cuts.dropped(kept) })
}

/// Where a conversation may be cut.
struct Cuts<'a> {
    head: &'a [ChatMessage<'a>],
    tail: &'a [ChatMessage<'a>],
    /// Indices into `tail`, latest first. Invariant: not empty.
    starts: Vec<usize>,
}

impl<'a> Cuts<'a> {
    fn new(messages: &'a [ChatMessage<'a>]) -> Self {
        let system = messages.first().is_some_and(|first| first.role == ChatRole::System && messages.len() > 1);
        let (head, tail) = messages.split_at(usize::from(system));
        let last = tail.len().saturating_sub(1);
        let earlier = (1..last).rev().filter(|&at| tail[at].role == ChatRole::User);
        let mut starts: Vec<usize> = std::iter::once(last).chain(earlier).collect();
        if last > 0 {
            starts.push(0);
        }
        Self { head, tail, starts }
    }

    fn count(&self) -> usize {
        self.starts.len()
    }

    fn keep(&self, kept: usize) -> Vec<ChatMessage<'a>> {
        [self.head, &self.tail[self.dropped(kept)..]].concat()
    }

    fn dropped(&self, kept: usize) -> usize {
        self.starts[kept - 1]
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// A hundred words.
    const WORDS: &str = "w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w \
                         w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w w ";

    fn message(role: ChatRole, words: usize) -> ChatMessage<'static> {
        ChatMessage { role, content: &WORDS[..2 * words] }
    }

    fn info(context_tokens: u32) -> ReplicaInfo {
        ReplicaInfo { name: "m".into(), digest: String::new(), numerics: String::new(), context_tokens }
    }

    fn count(messages: &[ChatMessage<'_>]) -> u32 {
        messages.iter().map(|m| m.content.split_whitespace().count() as u32).sum()
    }

    fn conversation() -> impl Strategy<Value = Vec<ChatMessage<'static>>> {
        let roles = prop::sample::select(vec![ChatRole::User, ChatRole::Assistant, ChatRole::Tool, ChatRole::System]);
        prop::collection::vec((roles, 0usize..30).prop_map(|(role, words)| message(role, words)), 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn keeps_the_most_that_fits(messages in conversation(), context in 1u32..400, reserve in 0u32..50) {
            let budget = PromptBudget { reserve, drop_oldest: true };
            let room = context.saturating_sub(reserve);
            let cuts = Cuts::new(&messages);
            let whole = count(&messages) <= room;
            let best = (1..=cuts.count()).rev().find(|&n| count(&cuts.keep(n)) <= room);
            match fit(&messages, budget, &info(context), |m| Ok((m.to_vec(), count(m)))) {
                Ok(window) if whole => prop_assert_eq!(&window.prompt, &messages),
                Ok(window) => {
                    let best = best.expect("something fitted");
                    prop_assert_eq!(&window.prompt, &cuts.keep(best));
                    prop_assert_eq!(window.dropped, messages.len() - window.prompt.len());
                }
                Err(EngineError::ContextExceeded { .. }) => prop_assert!(best.is_none()),
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }
    }

    #[test]
    fn keeps_the_system_message_and_the_last_and_begins_with_the_user() {
        use ChatRole::{Assistant, System, User};
        let messages = [(System, 5), (User, 10), (Assistant, 10), (User, 10), (Assistant, 10), (User, 10)];
        let messages: Vec<_> = messages.map(|(role, words)| message(role, words)).to_vec();
        let budget = PromptBudget { reserve: 10, drop_oldest: true };
        let window = fit(&messages, budget, &info(57), |m| Ok((m.to_vec(), count(m)))).expect("fits");
        assert_eq!((window.dropped, window.prompt), (2, [&messages[..1], &messages[3..]].concat()));
    }

    #[test]
    fn nothing_is_dropped_where_that_is_not_allowed() {
        let messages = vec![message(ChatRole::User, 10), message(ChatRole::User, 10)];
        let budget = PromptBudget { reserve: 4, drop_oldest: false };
        let error = fit(&messages, budget, &info(20), |m| Ok(((), count(m)))).expect_err("too long");
        assert_eq!(error, EngineError::ContextExceeded { prompt: 20, reserve: 4, context: 20, model: "m".into() });
    }

    #[test]
    fn a_long_history_costs_no_more_than_the_context() {
        let messages: Vec<_> = (0..10_000).map(|_| message(ChatRole::User, 50)).collect();
        let rendered = Cell::new(0u32);
        let budget = PromptBudget { reserve: 0, drop_oldest: true };
        let render = |m: &[ChatMessage<'_>]| {
            rendered.set(rendered.get() + count(m));
            Ok(((), count(m)))
        };
        fit(&messages, budget, &info(2_000), render).expect("fits");
        assert!(rendered.get() < 30_000, "{}", rendered.get());
    }
}
