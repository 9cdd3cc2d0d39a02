//! Writes what the fuzz corpora begin with: fuzz_seeds [DIRECTORY]. What is there already stays.

use std::fs;
use std::path::PathBuf;

use cluster_tests::fuzzing::seeds;

fn main() -> std::io::Result<()> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
    let corpus = PathBuf::from(std::env::args().nth(1).unwrap_or(corpus.to_string()));
    for (target, seeds) in seeds::all() {
        let directory = corpus.join(target);
        fs::create_dir_all(&directory)?;
        println!("{target}: {} seeds", seeds.len());
        for (name, bytes) in seeds {
            fs::write(directory.join(name), bytes)?;
        }
    }
    Ok(())
}
