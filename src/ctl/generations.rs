//! `ctl generations`: which generations each node has on its disk, and why.

use super::client::Client;
use super::{Answer, Failure};
use crate::admin::generations::Generations;
use crate::admin::render;
use crate::proto::admin;
use crate::proto::admin::admin_request::Verb;

pub(super) const HELP: &str = "\
Older generations are kept by number, age and space (`packmaster ctl config show`), and in any case until every member
has moved on.
Example: packmaster ctl generations";

pub(super) fn run(client: &Client) -> Result<Answer, Failure> {
    let told: Generations = client.read(Verb::Generations(admin::Generations {}))?;
    let text = render::generations(&told).trim_end().to_owned();
    let json = serde_json::to_value(&told).expect("generations are always representable");
    Ok(Answer { text, json, code: 0 })
}
