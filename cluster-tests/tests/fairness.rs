//! Whoever asks for little is not held up by those who ask for much: between two of its requests, each of the others has had
//! its turn a bounded number of times. Counted is what was done, and no time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster_tests::client::{Busy, Client, Committed, Loaded, record};
use cluster_tests::cluster::Cluster;

/// Of each kind; with the small one they are sixteen.
const LOADERS: usize = 8;
const COMMITTERS: usize = 7;
/// Objects in a bulk load, and in a large commit, each of so many bytes.
const OBJECTS: u64 = 100;
const OBJECT_BYTES: usize = 1000;
/// Requests of the small one, of each kind.
const TURNS: u64 = 200;
/// Turns that each of the others may have between two of the small one. One, if the node alone decided; the small one's own
/// process must be woken in between, on a machine that is all taken.
const TURNS_BETWEEN_MAX: u64 = 10;

/// So many objects that nobody else stores.
fn own_objects(client: &mut Client, data: &[u8], count: u64) -> Vec<u64> {
    let mut oids = client.new_oids(count as u8 + 1).expect("new oids");
    // The root's is whoever's comes first.
    oids.retain(|oid| *oid != 0);
    oids.truncate(count as usize);
    store(client, &oids, data);
    oids
}

fn store(client: &mut Client, oids: &[u64], data: &[u8]) {
    let records: Vec<_> = oids.iter().map(|oid| (*oid, record(*oid, data, &[]))).collect();
    assert_eq!(client.commit(&records).expect("store"), Committed::Yes);
}

fn connect(to: SocketAddr) -> Client {
    Client::connect(to).expect("connect")
}

#[test]
fn a_small_client_makes_progress_beside_fifteen_large_ones() {
    let cluster = Cluster::start();
    let to = cluster.nodes[cluster.master()].durus;
    let mut small = connect(to);
    let root = small.new_oids(1).expect("new oids");
    store(&mut small, &root, b"root");
    let mine = own_objects(&mut small, b"small", 1);
    let [loads, commits] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let loaders = Busy::start((0..LOADERS).map(|_| {
        let (mut large, done) = (connect(to), loads.clone());
        let oids = own_objects(&mut large, &[b'x'; OBJECT_BYTES], OBJECTS);
        move || {
            large.load_all(&oids).expect("load");
            done.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let committers = Busy::start((0..COMMITTERS).map(|_| {
        let (mut large, done) = (connect(to), commits.clone());
        let oids = own_objects(&mut large, &[b'x'; OBJECT_BYTES], OBJECTS);
        move || {
            store(&mut large, &oids, &[b'y'; OBJECT_BYTES]);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }));
    // Each kind of request beside the others' of its kind: a load has no disk to wait for, and a commit has.
    let beside = |others: &AtomicU64, most: usize, small: &mut dyn FnMut()| {
        let before = others.load(Ordering::Relaxed);
        (0..TURNS).for_each(|_| small());
        let theirs = others.load(Ordering::Relaxed) - before;
        println!("{TURNS} of the small one's, {theirs} of the {most} others'");
        assert!(theirs > 0, "nobody was beside it");
        assert!(theirs <= TURNS * most as u64 * TURNS_BETWEEN_MAX, "{theirs} beside {TURNS}");
    };
    beside(&loads, LOADERS, &mut || {
        assert!(matches!(small.load(mine[0]).expect("load"), Loaded::Record(_)));
    });
    beside(&commits, COMMITTERS, &mut || store(&mut small, &mine, b"again"));
    loaders.finish();
    committers.finish();
    cluster.wait_level();
    cluster.finish();
}
