//! The long hunt: mutants SEEDS SECONDS [NAME...]. Each mutant lives for at most so many seeds and seconds. Not in release
//! builds, where no rule can be broken.

#[cfg(not(debug_assertions))]
fn main() {
    eprintln!("in a release build no rule can be broken; leave out --release");
    std::process::exit(2);
}

#[cfg(debug_assertions)]
fn main() {
    use std::time::Duration;

    use cluster_tests::mutants::{Hunt, Limit, hunt_all, table};
    use packmaster::mutants::Mutant;

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| {
        arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let limit = Limit { seeds: number(0, 100_000), time: Duration::from_secs(number(1, 3600)) };
    let names = arguments.get(2..).unwrap_or_default();
    let wanted =
        |mutant: &&Mutant| names.is_empty() || names.iter().any(|name| name == mutant.name());
    let hunts: Vec<Hunt> =
        Mutant::ALL.iter().filter(wanted).map(|mutant| Hunt::new(*mutant)).collect();
    let verdicts = hunt_all(&hunts, limit);
    println!("{}", table(&verdicts));
    for verdict in &verdicts {
        if let Some(kill) = &verdict.kill {
            let (seed, violation) = (kill.seed, &kill.violation);
            println!("{} at seed {seed}: {violation}", verdict.mutant.name());
        }
        for (seed, found) in &verdict.found {
            println!("{} at seed {seed}, with every rule kept: {found}", verdict.mutant.name());
        }
    }
}
