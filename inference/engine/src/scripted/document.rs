//! What the scripted replica says where a schema governs: a short document that the schema allows, one byte a token.

use crate::{
    EngineError, Grammar, TokenId,
    grammar::{GrammarCompiler, NEVER},
};

/// The tokens are the bytes, and this one, which ends the document.
const END: TokenId = 256;
const BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// A compiler for the scripted replica's tokens.
pub(super) fn compiler() -> Result<GrammarCompiler, EngineError> {
    let bytes = |id: TokenId| BYTES.get(id as usize).map_or(&[][..], std::slice::from_ref);
    GrammarCompiler::new(BYTES.len() + 1, bytes, |id| id == END)
}

/// The tokens of the document that begins with `forced`, at most `most`.
///
/// # Errors
///
/// [`EngineError::ModelFailed`] if the grammar does not allow `forced` or is too much work.
pub(super) fn write(mut grammar: Grammar, forced: &[TokenId], most: usize) -> Result<Vec<TokenId>, EngineError> {
    grammar.follow(forced)?;
    let mut tokens = forced.to_vec();
    while !grammar.is_complete() && tokens.len() < most {
        let mut row = [0.0; BYTES.len() + 1];
        grammar.mask(&mut row)?;
        let allowed = |id: &TokenId| row[*id as usize] != NEVER;
        // Only inside a text could this letter come.
        let in_text = allowed(&b'z'.into());
        let next = (0..=END).filter(allowed).min_by_key(|&id| (reluctance(id, in_text), id));
        let Some(next) = next.filter(|&id| id != END) else { break };
        grammar.follow(&[next])?;
        tokens.push(next);
    }
    Ok(tokens)
}

/// The text of a token.
pub(super) fn bytes(token: TokenId) -> &'static [u8] {
    BYTES.get(token as usize).map_or(&[], std::slice::from_ref)
}

/// Ends first, then whatever closes what is open, then plain text; whatever opens something comes last.
fn reluctance(token: TokenId, in_text: bool) -> u8 {
    match u8::try_from(token) {
        Err(_) => 0,
        Ok(b'"') if in_text => 1,
        Ok(b'}' | b']') if !in_text => 1,
        Ok(b'"') => 2,
        Ok(byte) if byte.is_ascii_alphanumeric() => 3,
        Ok(b'{' | b'[') => 6,
        Ok(byte) if byte.is_ascii_graphic() => 4,
        Ok(_) => 5,
    }
}
