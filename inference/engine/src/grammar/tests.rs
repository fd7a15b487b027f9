//! What schemas are taken, what they cost, and what they do to a row of logits.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

const END: TokenId = 256;

/// Over single bytes.
fn compiler() -> GrammarCompiler {
    let all: &'static [u8] = (0..=u8::MAX).collect::<Vec<_>>().leak();
    let text = |id: TokenId| all.get(id as usize).map_or(&[][..], std::slice::from_ref);
    GrammarCompiler::new(257, text, |id| id == END).expect("a vocabulary")
}

/// The bytes that may come next, and whether the end may.
fn allowed(grammar: &mut Grammar) -> (String, bool) {
    let mut row = [0.0; 257];
    grammar.mask(&mut row).expect("within the limits");
    let bytes = (0..END).filter(|&id| row[id as usize] != NEVER).map(|id| char::from(id as u8));
    (bytes.collect(), row[END as usize] != NEVER)
}

fn follow(grammar: &mut Grammar, text: &str) {
    let tokens: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
    grammar.follow(&tokens).unwrap_or_else(|error| panic!("{text}: {error}"));
}

#[test]
fn a_grammar_allows_what_the_schema_does_and_then_the_end_alone() {
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [1, 23] } }, "required": ["n"], "additionalProperties": false });
    let mut grammar = compiler().compile(&schema.to_string()).expect("a schema");
    assert_eq!(allowed(&mut grammar), ("{".into(), false));
    follow(&mut grammar, "{\"n\":");
    assert_eq!(allowed(&mut grammar), ("\t\n\r 12".into(), false));
    follow(&mut grammar, "2");
    assert_eq!(allowed(&mut grammar), ("3".into(), false));
    let mut other = grammar.clone();
    follow(&mut grammar, "3}");
    assert!(grammar.is_complete() && !other.is_complete(), "clones go their own ways");
    assert_eq!(allowed(&mut grammar), (String::new(), true));
    assert!(other.follow(&[TokenId::from(b'4')]).is_err());
}

#[test]
fn a_number_may_end_or_go_on() {
    let mut grammar = compiler().compile(r#"{"type": "integer", "minimum": 0, "maximum": 99}"#).expect("a schema");
    follow(&mut grammar, "7");
    assert_eq!(allowed(&mut grammar), ("0123456789".into(), true));
}

#[test]
fn what_is_not_finite_is_left_for_the_sampler_to_find() {
    let mut grammar = compiler().compile(r#"{"type": "null"}"#).expect("a schema");
    let mut row = [1.0; 257];
    row[7] = f32::NAN;
    grammar.mask(&mut row).expect("within the limits");
    assert!(row[7].is_nan() && row[usize::from(b'n')] == 1.0 && row[8] == NEVER);
}

#[test]
fn what_replies_cannot_be_held_to_is_refused() {
    let refused = [
        ("", "EOF"),
        ("true", "not an object"),
        (r#"{"type": "text"}"#, "Invalid type"),
        (r#"{"type": "array", "uniqueItems": true}"#, "uniqueItems"),
        (r#"{"not": {"type": "string"}}"#, "not"),
        (r#"{"oneOf": [{"type": "integer"}, {"type": "number"}]}"#, "oneOf"),
        (r#"{"type": "string", "format": "idn-email"}"#, "idn-email"),
        (r##"{"$ref": "#/$defs/none"}"##, "not found"),
        (r#"{"$ref": "https://example.com/schema"}"#, "$ref"),
        (r##"{"$ref": "#"}"##, "leads nowhere"),
        (r#"{"type": "integer", "minimum": 5, "maximum": 3}"#, "greater than maximum"),
        // The compiler's own options are not the caller's.
        (r#"{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}"#, "uniqueItems"),
    ];
    let compiler = compiler();
    for (schema, problem) in refused {
        let error = compiler.compile(schema).expect_err(schema).to_string();
        assert!(error.starts_with("the schema cannot be followed: ") && error.contains(problem), "{schema}: {error}");
    }
}

/// Schemas that are made to take long do not: they are refused, or compiled within a bound (which is loose, for busy machines).
#[test]
fn hostile_schemas_are_bounded() {
    let both = |n| json!({ "anyOf": [{ "properties": { format!("a{n}"): { "type": "integer" } } }, { "required": [format!("b{n}")] }] });
    let properties = |n: usize| -> Value { (0..n).map(|n| (format!("p{n}"), json!({ "type": "string" }))).collect() };
    let mut deep = json!({ "type": "integer" });
    for _ in 0..60 {
        deep = json!({ "type": "array", "items": deep });
    }
    // 49 KB that took minutes and gigabytes.
    let mut definitions = serde_json::Map::new();
    for number in 0..15 {
        let next = json!({ "$ref": format!("#/$defs/d{}", number + 1) });
        definitions.insert(format!("d{number}"), json!({ "allOf": [next, next] }));
    }
    let text = json!({ "type": "string", "pattern": "abcdefgh".repeat(4_000) });
    definitions.insert("d15".to_owned(), json!({ "type": "array", "prefixItems": [text] }));
    let doubled = json!({ "$ref": "#/$defs/d0", "$defs": definitions });
    let multiples = [997, 991, 983].map(|multiple| json!({ "type": "integer", "multipleOf": multiple }));
    let hostile = [
        json!({ "allOf": (0..30).map(both).collect::<Vec<_>>() }),
        json!({ "type": "object", "properties": properties(2_000) }),
        deep,
        json!({ "type": "string", "pattern": "(.*a){30}.{200}b" }),
        json!({ "type": "string", "pattern": "^(a|b|ab|ba){1,1000}(x?y?z?){500}$" }),
        json!({ "type": "string", "minLength": 100_000, "maxLength": 2_000_000 }),
        json!({ "type": "array", "minItems": 100_000, "items": { "type": "array", "minItems": 100_000 } }),
        json!({ "type": "integer", "multipleOf": 99_999_999 }),
        json!({ "type": "number", "multipleOf": 0.123_456_789 }),
        json!({ "allOf": multiples }),
        json!({ "description": "x".repeat(MAX_SCHEMA_BYTES) }),
        doubled,
    ];
    let compiler = compiler();
    for schema in hostile {
        let begun = Instant::now();
        let refused = compiler.compile(&schema.to_string()).err();
        let shown: String = schema.to_string().chars().take(60).collect();
        assert!(begun.elapsed() < Duration::from_secs(5), "{shown}: {:?}: {refused:?}", begun.elapsed());
    }
}

#[test]
fn multiples_are_counted_together() {
    let check = |schema: Value| multiples::check(&schema).is_ok();
    assert!(check(json!({ "multipleOf": 0.25 })) && check(json!({ "multipleOf": 1000 })));
    assert!(check(json!([{ "multipleOf": 100 }, { "multipleOf": 50.0 }])), "25 · 2 · 2 · 5");
    assert!(!check(json!([{ "multipleOf": 31 }, { "properties": { "a": { "multipleOf": 37 } } }])));
    assert!(
        !check(json!({ "multipleOf": 0 }))
            && !check(json!({ "multipleOf": 1e-9 }))
            && !check(json!({ "multipleOf": -2 }))
    );
    assert!(check(json!({ "properties": { "multipleOf": { "type": "string" } } })), "a property of that name");
}

#[test]
fn formats_are_as_strict_as_validators() {
    let mut schema = json!({
        "properties": { "format": { "format": "date" }, "own": { "format": "date", "pattern": "^2" } },
        "enum": [{ "format": "date" }],
    });
    formats::tighten(&mut schema);
    assert!(schema["properties"]["format"]["pattern"].is_string());
    assert_eq!(schema["properties"]["own"]["pattern"], "^2");
    assert_eq!(schema["enum"], json!([{ "format": "date" }]));
}
