//! Writes the large file that the benches pack: bigfile FILE [OBJECTS [TEXT_BYTES]].

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |nth: usize, usual: u64| {
        args.get(nth).map_or(usual, |text| text.parse().expect("a number"))
    };
    let file = args.first().map(PathBuf::from).expect("usage: bigfile FILE [OBJECTS [TEXT_BYTES]]");
    let made = cluster_tests::bigfile::write(&file, number(1, 1_000_000), number(2, 190) as usize)?;
    println!("{} objects, {} of them live, {} bytes", made.objects, made.live.len(), made.bytes);
    Ok(())
}
