//! Stock Python clients in contention, beside stock Durus: `cargo bench -p cluster-tests --bench contention [-- SECONDS [RUNS]]`.
//!
//! Eight clients, a process each, read and write the same few objects (`contend.py`); a stock `durus -s` 4.3 and a cluster of
//! three nodes on this machine take turns. How many transactions came to nothing, and how many of these for no other reason
//! than that the server refused what its client, who knew what had changed, would have stored. The last line is JSON.

use std::collections::BTreeMap;

use cluster_tests::cluster::Cluster;
use cluster_tests::journal::median;
use cluster_tests::ports::Ports;
use cluster_tests::{python, stock};
use serde_json::{Value, json};

const SECONDS: u64 = 4;
const RUNS: u64 = 3;
const WORKLOADS: [(&str, &str); 3] = [
    ("own", "each its own object"),
    ("others", "its own, after reading 3 of 64"),
    ("hot", "3 of 64 read, 1 of them written"),
];

fn main() {
    // cargo passes --bench of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |nth: usize| args.get(nth).map(|text| text.parse::<u64>().expect("a number"));
    let (seconds, runs) = (number(0).unwrap_or(SECONDS), number(1).unwrap_or(RUNS));
    let dir = tempfile::tempdir_in(stock::target_dir()).expect("a directory");
    let cluster = Cluster::start();
    let ports: Vec<_> = cluster.nodes.iter().map(|node| node.durus.port().to_string()).collect();
    let reserved = Ports::reserve();
    let server = stock::Server::start(&dir.path().join("stock.durus"), reserved.port(0));
    println!(
        "{:<34} {:>14} {:>14} {:>14} {:>14} {:>10}",
        "8 stock clients, median of runs",
        "stock, done/s",
        "ours, done/s",
        "stock, lost",
        "ours, lost",
        "refused"
    );
    let mut rows = Vec::new();
    for (workload, what) in WORKLOADS {
        let (mut theirs, mut ours) = (Figures::default(), Figures::default());
        for _ in 0..runs {
            theirs.take(&contend(&server.address.port().to_string(), workload, seconds));
            ours.take(&contend(&ports.join(","), workload, seconds));
        }
        let (theirs, ours) = (theirs.medians(), ours.medians());
        println!(
            "{what:<34} {:>14.0} {:>14.0} {:>12.1} % {:>12.1} % {:>8.1} %",
            theirs["done_per_s"],
            ours["done_per_s"],
            theirs["lost_percent"],
            ours["lost_percent"],
            ours["refused_percent"]
        );
        rows.push(json!({ "workload": workload, "stock": theirs, "ours": ours, "runs": runs, "seconds": seconds }));
    }
    drop(server);
    cluster.finish();
    println!("{}", json!({ "benchmark": "contention", "rows": rows }));
}

fn contend(ports: &str, workload: &str, seconds: u64) -> Value {
    let seconds_text = seconds.to_string();
    let args = ["--ports", ports, "--workload", workload, "--seconds", &seconds_text];
    python::run("contend.py", &args, seconds + 60)
}

/// By name, one for each run.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, Vec<f64>>);

impl Figures {
    fn take(&mut self, said: &Value) {
        let figure = |name: &str| said[name].as_f64().expect("a figure");
        let done = figure("committed");
        let lost = figure("read") + figure("told") + figure("refused");
        let percent = |part: f64| 100.0 * part / (done + lost);
        for (name, value) in [
            ("done_per_s", done / figure("seconds")),
            ("lost_percent", percent(lost)),
            ("refused_percent", percent(figure("refused"))),
        ] {
            self.0.entry(name).or_default().push(value);
        }
    }

    fn medians(self) -> BTreeMap<&'static str, f64> {
        self.0.into_iter().map(|(name, values)| (name, median(values))).collect()
    }
}
