use proptest::prelude::*;

use super::*;

const HERMES: CallSyntax = CallSyntax::Free(ToolSyntax::Hermes);
const MISTRAL: CallSyntax = CallSyntax::Free(ToolSyntax::Mistral);
const LLAMA: CallSyntax = CallSyntax::Free(ToolSyntax::Llama);

fn read(syntax: CallSyntax, pieces: &[&str]) -> Vec<Part> {
    let mut reader = CallReader::new(syntax);
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    joined(parts)
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn call(name: &str, arguments: &str) -> Part {
    Part::Call(WrittenCall { name: name.into(), arguments: arguments.into() })
}

#[test]
fn calls_are_found_in_every_syntax() {
    for (syntax, written, expected) in [
        (
            HERMES,
            "Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"</tool\"}}\n</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
            vec![text("Let me look.\n"), call("f", r#"{"x":"</tool"}"#), text("\n"), call("g", "{}")],
        ),
        (HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", vec![call("f", "{}")]),
        (
            MISTRAL,
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": [1]}}, {\"name\": \"g\", \"arguments\": \"{}\"}]",
            vec![call("f", r#"{"x":[1]}"#), call("g", "{}")],
        ),
        (
            LLAMA,
            " {\"name\": \"f\", \"parameters\": {\"x\": 1}}; {\"name\": \"g\"}",
            vec![call("f", r#"{"x":1}"#), call("g", "{}")],
        ),
        (CallSyntax::Forced, "{\"name\": \"f\", \"arguments\": {\"x\": null}}", vec![call("f", r#"{"x":null}"#)]),
    ] {
        assert_eq!(read(syntax, &[written]), expected, "{written}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (syntax, written) in [
        (HERMES, "a < b, <tool> and <tool_cal"),
        (HERMES, "<tool_call>{\"name\": 1}</tool_call> and on"),
        (HERMES, "<tool_call>not json"),
        (MISTRAL, "[TOOL_CALLS] nothing"),
        (MISTRAL, "[TOOL_CALLS] [1, 2] and on"),
        (MISTRAL, "[TOOL_CALLS][]"),
        (LLAMA, "{\"name\": \"f\"} and then some"),
        (LLAMA, "{\"title\": \"f\"}"),
        (LLAMA, "It is {\"name\": \"f\", \"parameters\": {}}"),
        (CallSyntax::Forced, "{\"name\": \"f\", \"argu"),
    ] {
        assert_eq!(read(syntax, &[written]), [text(written)]);
    }
}

#[test]
fn text_is_not_held_back_longer_than_it_may_become_a_call() {
    let mut reader = CallReader::new(HERMES);
    assert_eq!(reader.push("one <tool"), [text("one ")]);
    assert_eq!(reader.push("box> two"), [text("<toolbox> two")]);
    let mut reader = CallReader::new(LLAMA);
    assert_eq!(reader.push(" "), []);
    assert_eq!(reader.push("Hello"), [text(" Hello")]);
    assert_eq!(reader.push(" {"), [text(" {")]);
    let mut reader = CallReader::new(HERMES);
    let long = "x".repeat(MAX_CALL_BYTES + 1);
    assert_eq!(reader.push(&format!("<tool_call>{long}")), [text(&format!("<tool_call>{long}"))]);
}

fn pieces() -> impl Strategy<Value = Vec<String>> {
    let piece = prop_oneof![
        Just("<tool_call>".to_owned()),
        Just("</tool_call>".to_owned()),
        Just("[TOOL_CALLS]".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just(";".to_owned()),
        Just(r#"{"name": "f", "arguments": {"x": "ä"}}"#.to_owned()),
        Just(r#"{"name": "g", "parameters": {}}"#.to_owned()),
        "[a-z<>{}\\[\\]\" ä😀]{0,6}",
    ];
    prop::collection::vec(piece, 0..10)
}

proptest! {
    #[test]
    fn a_reply_is_read_the_same_however_it_is_cut(
        pieces in pieces(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        syntax in prop_oneof![Just(HERMES), Just(MISTRAL), Just(LLAMA), Just(CallSyntax::Forced)],
    ) {
        let whole = pieces.concat();
        let mut places: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
        places.push(whole.len());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).collect();
        cuts.extend([0, whole.len()]);
        cuts.sort_unstable();
        let cut: Vec<&str> = cuts.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect();
        let expected = read(syntax, &[&whole]);
        prop_assert_eq!(&read(syntax, &cut), &expected);
        let every: Vec<String> = whole.chars().map(String::from).collect();
        let every: Vec<&str> = every.iter().map(String::as_str).collect();
        prop_assert_eq!(&read(syntax, &every), &expected);
        if !expected.iter().any(|part| matches!(part, Part::Call(_))) {
            let texts: String = expected.iter().map(|part| match part { Part::Text(text) => text.as_str(), Part::Call(_) => "" }).collect();
            prop_assert_eq!(texts, whole, "nothing is lost");
        }
    }
}
