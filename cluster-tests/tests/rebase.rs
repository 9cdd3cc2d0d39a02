//! The rebase ladder with real processes: which rung a late node takes, and how many bytes go over the wire for it, as
//! its own `/metrics` say.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cluster_tests::bigfile;
use cluster_tests::chaincheck::{assert_same_bytes, check_file};
use cluster_tests::client::{self, Client, Committed};
use cluster_tests::cluster::{Builder, Cluster};
use cluster_tests::status::Status;

const FIRST: &str = "g00000001.durus";
const BLOCK: u64 = 1 << 20;
/// Blocks that a node has asked for and not got, at most.
const UNDER_WAY: u64 = 6;
/// Some 60 MB, of which a pack keeps half: thirty blocks.
const OBJECTS: u64 = 100_000;
const OBJECT_BYTES: usize = 560;
/// A base is fetched in some four seconds: time enough for something to happen in its middle.
const SLOWLY: &str = "limits.fetch_bytes_per_s_max=8000000";
const PATIENCE_S: u64 = 60;

fn start(objects: u64) -> Cluster {
    let dir = tempfile::tempdir().expect("a directory for the import");
    let file = dir.path().join("site.durus");
    bigfile::write(&file, objects, OBJECT_BYTES).expect("write the import");
    Builder::default().import(&file).set(SLOWLY).start()
}

/// A few small commits, of objects that nothing refers to: the root of the import stays as it is.
fn commit_some(cluster: &Cluster, node: usize) {
    let mut client = Client::connect(cluster.nodes[node].durus).expect("connect");
    for oid in client.new_oids(5).expect("new oids") {
        let record = client::record(oid, &[b'x'; 300], &[]);
        assert_eq!(client.commit(&[(oid, record)]).expect("commit"), Committed::Yes);
    }
}

fn wire(cluster: &Cluster, node: usize, rung: &str) -> u64 {
    let name = format!("packmaster_rebase_wire_bytes{{rung=\"{rung}\"}}");
    cluster.metric(node, &name).unwrap_or_else(|| panic!("no metric {name}"))
}

fn wires(cluster: &Cluster, node: usize) -> [u64; 3] {
    ["local", "tail", "base"].map(|rung| wire(cluster, node, rung))
}

fn pack(cluster: &Cluster, generation: u64) {
    cluster.ctl(&["pack", "--wait", "--timeout", "60s"]).done();
    cluster.wait_for("the new generation", PATIENCE_S, |cluster| {
        let status = cluster.try_status().ok()?;
        status.generation.filter(|it| it.number == generation)
    });
}

#[track_caller]
fn wait_together(cluster: &Cluster, generation: u64) -> Status {
    cluster.wait_for("all nodes at one place", PATIENCE_S, |cluster| {
        let status = cluster.try_status().ok()?;
        let flipped = status.nodes.iter().all(|node| node.generation == generation);
        (flipped && status.is_healthy() && status.is_level()).then_some(status)
    })
}

fn assert_files_same(cluster: &Cluster) {
    let files: Vec<PathBuf> = cluster.nodes.iter().map(|node| node.file()).collect();
    assert_same_bytes(&files.iter().map(PathBuf::as_path).collect::<Vec<&Path>>());
}

/// A slave that was down, while the others have packed and have nothing older any more.
struct Late {
    cluster: Cluster,
    late: usize,
    /// Of the new base.
    base_len: u64,
}

impl Late {
    fn prepare() -> Late {
        let mut cluster = start(OBJECTS);
        let late = (cluster.master() + 1) % 3;
        let others: Vec<usize> = (0..3).filter(|&i| i != late).collect();
        cluster.kill(late);
        // What it misses before the cut is what it can't do without.
        commit_some(&cluster, others[0]);
        pack(&cluster, 2);
        for &i in &others {
            cluster.terminate(i);
            fs::remove_file(cluster.nodes[i].data.join(FIRST)).expect("the old generation");
        }
        others.iter().for_each(|&i| cluster.launch(i));
        cluster.master();
        let base_len = check_file(&cluster.nodes[others[0]].file()).seal().end as u64;
        assert!(base_len > 20 * BLOCK, "a base of {base_len} bytes");
        Late { cluster, late, base_len }
    }

    /// Until so many permille of the base came over the wire, with the fetch going on.
    fn fetch_to(&self, permille: u64) -> u64 {
        let wanted = self.base_len * permille / 1000;
        self.cluster.wait_for("a part of the base", PATIENCE_S, |cluster| {
            let bytes = cluster
                .metric(self.late, "packmaster_rebase_wire_bytes{rung=\"base\"}")
                .filter(|bytes| *bytes >= wanted)?;
            assert!(bytes < self.base_len, "all of it came before anything could happen");
            Some(bytes)
        })
    }

    fn partials(&self) -> Vec<String> {
        let names = fs::read_dir(&self.cluster.nodes[self.late].data).expect("its directory");
        let names = names.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("fetching")).collect()
    }

    /// In step, with the fetched base and nothing left of the fetch.
    fn arrives(&self) -> Status {
        let status = wait_together(&self.cluster, 2);
        let last = status.nodes[self.late].rebases.last.clone().expect("a rebase");
        assert_eq!((last.rung.as_str(), last.generation), ("base", 2), "{last:?}");
        assert_eq!(self.cluster.metric(self.late, "packmaster_rebases{rung=\"base\"}"), Some(1));
        assert_eq!(self.partials(), [""; 0]);
        commit_some(&self.cluster, self.late);
        self.cluster.wait_level();
        status
    }
}

#[test]
fn down_through_a_pack_and_back_without_a_byte_of_the_base() {
    let mut cluster = start(20_000);
    let late = (cluster.master() + 1) % 3;
    let at_work = (late + 1) % 3;
    // Nothing missed before the cut: built from its own file, and not a byte over the wire.
    cluster.kill(late);
    pack(&cluster, 2);
    commit_some(&cluster, at_work);
    cluster.launch(late);
    let status = wait_together(&cluster, 2);
    assert_eq!(wires(&cluster, late), [0, 0, 0]);
    let told = &status.nodes[late].rebases;
    assert_eq!((told.local.finished, told.tail.finished, told.base.finished), (1, 0, 0));
    assert!(told.last.as_ref().is_some_and(|last| last.rung == "local" && last.wire_bytes == 0));
    // Something missed before the cut: that came, and nothing else.
    cluster.kill(late);
    commit_some(&cluster, at_work);
    pack(&cluster, 3);
    commit_some(&cluster, at_work);
    cluster.launch(late);
    let status = wait_together(&cluster, 3);
    let [local, tail, base] = wires(&cluster, late);
    assert_eq!((local, base), (0, 0));
    assert!(tail > 0 && tail < 500_000, "{tail} bytes for some small commits");
    assert_eq!(status.nodes[late].rebases.tail.finished, 1);
    assert_eq!(status.nodes[late].fetched_bytes, tail);
    // The same, and the others were started anew meanwhile: their older files are closed, and opened for it.
    let others: Vec<usize> = (0..3).filter(|&i| i != late).collect();
    cluster.kill(late);
    commit_some(&cluster, at_work);
    pack(&cluster, 4);
    for &i in &others {
        cluster.terminate(i);
    }
    others.iter().for_each(|&i| cluster.launch(i));
    cluster.master();
    cluster.launch(late);
    let status = wait_together(&cluster, 4);
    let last = status.nodes[late].rebases.last.clone().expect("a rebase");
    assert_eq!((last.rung.as_str(), last.generation), ("tail", 4), "{last:?}");
    assert_files_same(&cluster);
    cluster.finish();
}

#[test]
fn killed_in_the_middle_of_a_fetch_it_fetches_only_the_rest() {
    let mut scene = Late::prepare();
    let late = scene.late;
    scene.cluster.launch(late);
    let fetched = scene.fetch_to(400);
    let now = scene.cluster.try_status().expect("a status").nodes[late].rebases.now.clone();
    let now = now.expect("a rebase in progress");
    assert_eq!((now.rung.as_str(), now.generation, now.doing.as_str()), ("base", 2, "fetch"));
    assert_eq!(now.total_bytes, Some(scene.base_len));
    assert!(now.bytes_per_second.is_some_and(|rate| rate < 20_000_000), "{now:?}");
    assert!(now.seconds_left.is_some_and(|left| left > 0.0), "{now:?}");
    scene.cluster.kill(late);
    assert_eq!(scene.partials().len(), 1);

    scene.cluster.launch(late);
    scene.arrives();
    let rest = wire(&scene.cluster, late, "base");
    let reused = scene.cluster.metric(late, "packmaster_rebase_reused_bytes").expect("a metric");
    println!("{fetched} bytes fetched and killed; {reused} used again, {rest} fetched");
    assert_eq!(reused + rest, scene.base_len, "nothing twice, nothing left out");
    assert!(reused + UNDER_WAY * BLOCK >= fetched, "only {reused} of {fetched} bytes used again");
    assert!(reused > scene.base_len / 4);
    assert_eq!(wires(&scene.cluster, late), [0, 0, rest]);
    let log = scene.cluster.nodes[late].log_text();
    assert!(log.contains("fetch: goes on where an earlier process was"));
    assert_files_same(&scene.cluster);
    scene.cluster.finish();
}

/// `dies` is killed in the middle: the fetch goes on from the other, and nothing comes twice but what was under way.
fn a_source_dies(scene: &mut Late, dies: usize) {
    scene.cluster.launch(scene.late);
    scene.fetch_to(300);
    scene.cluster.kill(dies);
    scene.cluster.wait_for("the late node's rebase", PATIENCE_S, |cluster| {
        let late = cluster.nodes[scene.late].name.clone();
        let status = cluster.try_status().ok()?;
        (status.node(&late).generation == 2).then_some(())
    });
    // The two of them are a majority.
    commit_some(&scene.cluster, scene.late);
    scene.cluster.launch(dies);
    scene.arrives();
    let fetched = wire(&scene.cluster, scene.late, "base");
    let most = scene.base_len + UNDER_WAY * BLOCK;
    assert!((scene.base_len..=most).contains(&fetched), "{fetched} bytes of {}", scene.base_len);
    assert_files_same(&scene.cluster);
}

#[test]
fn the_slave_that_gives_the_base_dies_in_the_middle() {
    let mut scene = Late::prepare();
    let master = scene.cluster.master();
    let slave = (0..3).find(|&i| i != master && i != scene.late).expect("three nodes");
    let given = |scene: &Late| {
        scene.cluster.metric(master, "packmaster_rebase_given_bytes").expect("a metric")
    };
    assert_eq!(given(&scene), 0);
    a_source_dies(&mut scene, slave);
    let by_the_master = given(&scene);
    println!("{by_the_master} of {} bytes were the master's", scene.base_len);
    // It is spared as long as a slave can give.
    assert!(by_the_master > scene.base_len / 4, "nobody gave the rest");
    assert!(by_the_master < scene.base_len * 8 / 10, "the slave gave nothing");
    scene.cluster.finish();
}

#[test]
fn the_master_dies_in_the_middle_of_a_fetch() {
    let mut scene = Late::prepare();
    let master = scene.cluster.master();
    a_source_dies(&mut scene, master);
    scene.cluster.finish();
}

#[test]
fn a_source_with_a_bad_disk_is_named_and_another_is_asked() {
    let mut scene = Late::prepare();
    let (master, late) = (scene.cluster.master(), scene.late);
    let slave = (0..3).find(|&i| i != master && i != late).expect("three nodes");
    scene.cluster.launch(late);
    scene.fetch_to(300);
    // The disk of whoever gives the blocks rots under it.
    let file = File::options().write(true).open(scene.cluster.nodes[slave].file());
    let at = scene.base_len * 9 / 10;
    file.expect("its file").write_all_at(b"rotten", at).expect("damage it");
    let status = scene.arrives();
    let told = &status.nodes[late].rebases;
    assert!(told.refused_bytes > 0, "a bad block was taken: {told:?}");
    let log = scene.cluster.nodes[late].log_text();
    let named = format!("peer: {}", slave + 1);
    let line = log.lines().find(|line| line.contains("sent a bad block"));
    assert!(line.is_some_and(|line| line.contains(&named)), "{line:?} does not name {named}");
    let files = [master, late].map(|i| scene.cluster.nodes[i].file());
    assert_same_bytes(&[&files[0], &files[1]]);
    check_file(&files[1]);
}
