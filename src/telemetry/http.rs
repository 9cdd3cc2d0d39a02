//! The node's pages: for load balancers (`/master`, `/slave`, `/ready`), for supervisors (`/health`), for monitoring
//! (`/metrics`), for scripts (`/status`) and for people (`/`).
//!
//! Every page is made of one status, asked of this node by the same request as ctl's, so no page contradicts another.
//! A node that does not tell its status in time is told to be out of order by every page. Nothing here changes
//! anything.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::MethodRouter;
use serde::Deserialize;

use super::metrics;
use crate::admin::model::{NodeStatus, Status};
use crate::proto::admin::admin_request::Verb;
use crate::proto::admin::{self, AdminReply, AdminRequest};

/// Load balancers ask often and give up early; a core that needs longer is out of order.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Self-contained: whoever looks at it may have nothing else left.
const PAGE: &str = include_str!("page.html");
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The pages. `ask` brings a request to this node's core; `more` is what else this process has for /metrics.
///
/// Whoever serves them bounds how long a slow reader may keep a shutdown waiting.
pub fn router<A, F, M>(ask: A, more: M) -> Router
where
    A: Fn(AdminRequest) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = AdminReply> + Send + 'static,
    M: Fn() -> String + Clone + Send + Sync + 'static,
{
    let metrics = move |State(ask): State<A>| {
        let more = more();
        async move { metrics_page(ask, more).await }
    };
    Router::new()
        .route("/", page(async |_: State<A>| Html(PAGE)))
        .route("/status", page(async |State(ask): State<A>| raw_status(ask).await))
        .route("/metrics", page(metrics))
        .route("/master", page(async |State(ask): State<A>| judge(ask, is_master).await))
        .route("/ready", page(async |State(ask): State<A>| judge(ask, is_ready).await))
        .route("/health", page(async |State(ask): State<A>| judge(ask, is_sound).await))
        .route(
            "/slave",
            page(async |State(ask): State<A>, Query(wanted): Query<Wanted>| {
                judge(ask, move |status| is_slave(status, wanted.lag_bytes)).await
            }),
        )
        .with_state(ask)
}

/// GET and HEAD, and OPTIONS as load balancers of old use it.
fn page<H, T, S>(handler: H) -> MethodRouter<S>
where
    H: axum::handler::Handler<T, S>,
    T: 'static,
    S: Clone + Send + Sync + 'static,
{
    axum::routing::get(handler.clone()).options(handler)
}

#[derive(Deserialize)]
struct Wanted {
    /// A slave further behind than this does not count.
    lag_bytes: Option<u64>,
}

/// Yes is 200 and no is 503; both with a word for people.
type Judgement = Result<String, String>;

async fn judge<A, F>(ask: A, judge: impl FnOnce(&Status) -> Judgement) -> Response
where
    A: Fn(AdminRequest) -> F,
    F: Future<Output = AdminReply>,
{
    let judgement = match status(ask).await {
        Ok(status) => judge(&status),
        Err(why) => Err(why),
    };
    match judgement {
        Ok(word) => (StatusCode::OK, word + "\n").into_response(),
        Err(why) => unavailable(why),
    }
}

fn unavailable(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response()
}

fn own(status: &Status) -> Result<&NodeStatus, String> {
    status.own().ok_or_else(|| format!("{} is no member", status.answered_by))
}

fn is_master(status: &Status) -> Judgement {
    match &status.master {
        Some(master) if *master == status.answered_by => Ok("open master".to_owned()),
        Some(master) => Err(format!("{master} is master")),
        None => Err("no master is open".to_owned()),
    }
}

fn is_slave(status: &Status, lag_bytes: Option<u64>) -> Judgement {
    let own = own(status)?;
    if is_master(status).is_ok() {
        return Err("this is the master".to_owned());
    }
    if !own.in_step {
        return Err(format!("not in step: {}", own.state));
    }
    match lag_bytes {
        Some(most) if own.lag.bytes > most => Err(format!("{} bytes behind", own.lag.bytes)),
        _ => Ok("slave in step".to_owned()),
    }
}

/// Clients of this node are served now.
fn is_ready(status: &Status) -> Judgement {
    let own = own(status)?;
    match (own.in_step, &status.master) {
        (true, Some(_)) => Ok("ready".to_owned()),
        (_, None) => Err("no master is open".to_owned()),
        (false, _) => Err(format!("not in step: {}", own.state)),
    }
}

/// This node itself is in order, whatever the cluster is.
fn is_sound(status: &Status) -> Judgement {
    let own = own(status)?;
    match own.suspect.as_ref().or(own.failing.as_ref()) {
        Some(_) => Err(own.state.clone()),
        None => Ok("sound".to_owned()),
    }
}

async fn raw_status<A, F>(ask: A) -> Response
where
    A: Fn(AdminRequest) -> F,
    F: Future<Output = AdminReply>,
{
    match reply(ask).await {
        Ok(reply) => ([(header::CONTENT_TYPE, "application/json")], reply.json).into_response(),
        Err(why) => unavailable(why),
    }
}

async fn metrics_page<A, F>(ask: A, more: String) -> Response
where
    A: Fn(AdminRequest) -> F,
    F: Future<Output = AdminReply>,
{
    match status(ask).await {
        Ok(status) => {
            let text = metrics::text(&status) + &more;
            ([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response()
        }
        Err(why) => unavailable(why),
    }
}

async fn status<A, F>(ask: A) -> Result<Status, String>
where
    A: Fn(AdminRequest) -> F,
    F: Future<Output = AdminReply>,
{
    let json = reply(ask).await?.json;
    serde_json::from_slice(&json).map_err(|error| format!("the status is not understood: {error}"))
}

async fn reply<A, F>(ask: A) -> Result<AdminReply, String>
where
    A: Fn(AdminRequest) -> F,
    F: Future<Output = AdminReply>,
{
    let verb = Some(Verb::Status(admin::Status {}));
    let request = AdminRequest { id: 0, asked_by: "http".to_owned(), verb };
    let in_time = tokio::time::timeout(ANSWER_MAX, ask(request)).await;
    let reply = in_time.map_err(|_| "this node does not answer itself".to_owned())?;
    match reply.json.is_empty() {
        true => Err(reply.message),
        false => Ok(reply),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
