//! Lists the files of the page, so that they can be embedded by name.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let web = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("web");
    println!("cargo::rerun-if-changed={}", web.display());
    let mut files = Vec::new();
    if web.is_dir() {
        collect(&web, &mut files)?;
    }
    files.sort();
    let mut source = String::from("const FILES: &[(&str, &[u8])] = &[\n");
    for file in &files {
        let name = file.strip_prefix(&web)?.to_str().ok_or("a file of the page has a name that is not UTF-8")?;
        writeln!(source, "    ({name:?}, include_bytes!({:?})),", file)?;
    }
    source.push_str("];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("files.rs"), source)?;
    Ok(())
}

/// Files below `folder`, without tests and hidden ones.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with('.') || matches!(name, "tests" | "node_modules") {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().and_then(|extension| extension.to_str()).is_some_and(|kind| KINDS.contains(&kind)) {
            files.push(path);
        }
    }
    Ok(())
}

/// What is served; anything else in the folder is for its makers.
const KINDS: &[&str] = &["html", "js", "mjs", "css", "svg", "png", "ico", "webp", "woff2", "webmanifest", "txt"];
