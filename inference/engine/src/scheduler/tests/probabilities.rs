//! Probabilities of tokens.

use super::*;

#[test]
fn probabilities_come_with_the_text_of_their_tokens() {
    let mut harness = Harness::new(2, EngineOptions::default());
    let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    let asked = GenerateRequest { sampling, logprobs: Some(3), ..request(prompt(1, 20), 60) };
    let (ear, _) = harness.submit(asked.clone());
    harness.run();
    let heard = ear.heard();
    assert_eq!(heard.essence(), expected(&asked, CONTEXT).essence(), "asking changes nothing");
    assert_eq!(heard.logprobs.len(), heard.ids.len());
    let bytes: Vec<u8> = heard.logprobs.iter().flat_map(|token| token.token.bytes.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), heard.text);
    for token in &heard.logprobs {
        assert!(token.top.len() == 3 && token.token.logprob <= token.top[0].logprob, "{token:?}");
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob), "{token:?}");
    }
}

#[test]
fn probabilities_do_not_tell_a_stop_text() {
    let asked = GenerateRequest { logprobs: Some(0), ..request(prompt(1, 20), 60) };
    let text = expected(&asked, CONTEXT).text;
    let from = text.char_indices().nth(text.chars().count() / 2).map(|(at, _)| at).expect("a text");
    for length in [1, 2, 3] {
        let stop: String = text[from..].chars().take(length).collect();
        let mut harness = Harness::new(1, EngineOptions::default());
        let (ear, _) = harness.submit(GenerateRequest { stop: vec![stop], ..asked.clone() });
        harness.run();
        let heard = ear.heard();
        let bytes: Vec<u8> = heard.logprobs.iter().flat_map(|token| token.token.bytes.clone()).collect();
        let last = heard.logprobs.last().map_or(0, |token| token.token.bytes.len());
        assert!(String::from_utf8_lossy(&bytes).starts_with(&heard.text), "{heard:?}");
        assert!(String::from_utf8_lossy(&bytes[..bytes.len() - last]).len() < heard.text.len().max(1), "{heard:?}");
    }
}
