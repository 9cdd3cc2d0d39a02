//! The pages over a real socket, of a node that answers as told.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::admin::status_reply;
use crate::admin::view::{ClusterView, Heard};
use crate::proto::control::{Beat, Elect, Member};
use crate::types::NodeId;

/// Two nodes, n1 the open master; asked at `own`.
fn view(own: u64) -> ClusterView {
    let mut view = ClusterView { own: NodeId(own), silence_ms: 500, ..Default::default() };
    let member =
        |id| Member { id, name: format!("n{id}"), role: "voter".into(), ..Default::default() };
    view.state.members = vec![member(1), member(2)];
    view.state.mastership = Some(Elect { master: 1, voters: vec![1, 2], ..Default::default() });
    view.state.opened = true;
    let beat = |id| Beat { open: id == 1, in_step: true, lag_bytes: 100, ..Default::default() };
    let mut master = beat(1);
    master.committed_seq = 5;
    view.heard = [
        (NodeId(1), Heard { beat: master, age_ms: 1 }),
        (NodeId(2), Heard { beat: beat(2), age_ms: 20 }),
    ]
    .into();
    view
}

/// A GET of `path`: status line's number, head and body.
async fn get(view: &ClusterView, path: &str) -> (u16, String, String) {
    let view = view.clone();
    request(move |request| std::future::ready(status_reply(request.id, &view)), "GET", path).await
}

async fn request<A, F>(ask: A, method: &str, path: &str) -> (u16, String, String)
where
    A: Fn(AdminRequest) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = AdminReply> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, router(ask, limits)).into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    let text = format!("{method} {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    server.abort();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_ascii_lowercase(), body.to_owned())
}

fn limits() -> String {
    metrics::limits(&[("clients_max", 4096.0, 3)])
}

async fn code(view: &ClusterView, path: &str) -> u16 {
    get(view, path).await.0
}

#[tokio::test]
async fn load_balancers_find_the_master_and_the_slaves() {
    let (master, slave) = (view(1), view(2));
    assert_eq!((code(&master, "/master").await, code(&slave, "/master").await), (200, 503));
    assert_eq!((code(&master, "/slave").await, code(&slave, "/slave").await), (503, 200));
    assert_eq!((code(&master, "/ready").await, code(&slave, "/ready").await), (200, 200));
    assert_eq!(get(&slave, "/master").await.2, "n1 is master\n");
}

#[tokio::test]
async fn a_slave_too_far_behind_does_not_count() {
    let slave = view(2);
    assert_eq!(code(&slave, "/slave?lag_bytes=100").await, 200);
    let (code_, _, why) = get(&slave, "/slave?lag_bytes=99").await;
    assert_eq!((code_, why.as_str()), (503, "100 bytes behind\n"));
    assert_eq!(code(&slave, "/slave?lag_bytes=many").await, 400);
}

#[tokio::test]
async fn without_a_master_nobody_is_ready_but_everybody_sound() {
    let mut view = view(2);
    view.refused.insert(NodeId(1));
    for path in ["/master", "/slave", "/ready"] {
        assert_eq!(code(&view, path).await, 503, "{path}");
    }
    assert_eq!(code(&view, "/health").await, 200);
}

#[tokio::test]
async fn a_suspect_node_is_unsound() {
    let mut view = view(2);
    view.heard.get_mut(&NodeId(2)).unwrap().beat.suspect = "bad chain".into();
    let (code_, _, why) = get(&view, "/health").await;
    assert_eq!((code_, why.as_str()), (503, "suspect: bad chain\n"));
    assert_eq!(code(&view, "/slave").await, 503);
}

#[tokio::test]
async fn status_is_the_json_of_ctl() {
    let (code_, head, body) = get(&view(2), "/status").await;
    assert_eq!(code_, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!((status.answered_by.as_str(), status.master.as_deref()), ("n2", Some("n1")));
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let (code_, head, body) = get(&view(2), "/metrics").await;
    assert_eq!(code_, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    for line in [
        "packmaster_is_master 0",
        "packmaster_in_step 1",
        "packmaster_lag_transactions 5",
        "packmaster_lag_bytes 100",
        "packmaster_verdict 0",
        "packmaster_node_info{node=\"n2\",version=\"\"} 1",
        "packmaster_peer_seen_seconds{node=\"n2\"} 0.02",
        "packmaster_limit{limit=\"clients_max\"} 4096",
        "packmaster_limit_hits_total{limit=\"clients_max\"} 3",
    ] {
        assert!(body.lines().any(|told| told == line), "{line} is missing in\n{body}");
    }
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("packmaster_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let family = name.split('{').next().unwrap();
        let kind = if family.ends_with("_total") { "counter" } else { "gauge" };
        assert!(body.contains(&format!("# TYPE {family} {kind}\n")), "{line}");
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let (code_, head, body) = get(&view(2), "/").await;
    assert_eq!(code_, 200);
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(body.contains("fetch(\"/status\""));
    assert!(!body.contains("http://") && !body.contains("https://"));
}

#[tokio::test]
async fn a_core_that_does_not_answer_is_out_of_order_on_every_page() {
    let stuck = |_: AdminRequest| std::future::pending::<AdminReply>();
    let (code_, _, why) = request(stuck, "GET", "/health").await;
    assert_eq!((code_, why.as_str()), (503, "this node does not answer itself\n"));
    let stopping = |_: AdminRequest| {
        let message = "the node is stopping".to_owned();
        std::future::ready(AdminReply { message, ..Default::default() })
    };
    for path in ["/status", "/metrics", "/ready"] {
        let (code_, _, why) = request(stopping, "GET", path).await;
        assert_eq!((code_, why.as_str()), (503, "the node is stopping\n"), "{path}");
    }
}

#[tokio::test]
async fn head_and_options_are_answered_and_nothing_can_be_changed() {
    let view = view(1);
    let ask = move |request: AdminRequest| std::future::ready(status_reply(request.id, &view));
    assert_eq!(request(ask.clone(), "HEAD", "/master").await.0, 200);
    assert_eq!(request(ask.clone(), "OPTIONS", "/master").await.0, 200);
    assert_eq!(request(ask.clone(), "POST", "/master").await.0, 405);
    assert_eq!(request(ask, "GET", "/elsewhere").await.0, 404);
}
