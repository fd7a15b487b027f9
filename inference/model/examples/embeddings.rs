//! How many texts a second all-MiniLM-L6-v2 embeds: `cargo run --release -p parlance-inference-model --example embeddings [MODEL_DIR]`.
//!
//! For each length 512 texts of as many words of one token, in batches under the engine's own bound on tokens, without HTTP. What the
//! package's own runtime does with the same texts: `fixtures/embeddings_speed.py`.

#![expect(clippy::print_stdout, reason = "an example prints its figures")]

use std::{error::Error, path::PathBuf, time::Instant};

use parlance_inference_engine::{EmbeddingCodec as _, EmbeddingModel as _, EmbeddingOptions};
use parlance_inference_model::{LoadOptions, Precision, load_embedder};

const TEXTS: usize = 512;
const LENGTHS: [usize; 3] = [14, 62, 254];

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("models/all-minilm-l6-v2"), PathBuf::from);
    println!("| precision | tokens | texts/s | tokens/s |\n|---|---|---|---|");
    for precision in [Precision::F32, Precision::Int8] {
        let options = LoadOptions { precision, ..LoadOptions::new("embeddings") };
        let mut loaded = load_embedder(&directory, &options, &|_| {})?;
        for words in LENGTHS {
            let tokens = loaded.codec.encode(&"word ".repeat(words))?;
            let batch = (EmbeddingOptions::default().step_tokens / tokens.len()).max(1);
            let (texts, mut vectors) = (vec![&*tokens; batch], Vec::new());
            loaded.model.embed(&texts, &mut vectors)?;
            let begun = Instant::now();
            for _ in 0..TEXTS / batch {
                loaded.model.embed(&texts, &mut vectors)?;
            }
            let rate = (TEXTS / batch * batch) as f64 / begun.elapsed().as_secs_f64();
            println!("| {precision} | {} | {rate:.0} | {:.0} |", tokens.len(), rate * tokens.len() as f64);
        }
    }
    Ok(())
}
