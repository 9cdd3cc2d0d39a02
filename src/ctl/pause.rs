//! `ctl pause` and `ctl resume`: no automatic elections while people work.

use super::client::Client;
use super::{Answer, Failure, done};
use crate::proto::admin;
use crate::proto::admin::admin_request::Verb;

pub(super) const PAUSE_HELP: &str = "\
While paused nobody takes over from a master that dies; `promote` still works, and so does everything else.
Example: packmaster ctl pause && reboot-the-switch && packmaster ctl resume";

pub(super) const RESUME_HELP: &str = "Example: packmaster ctl resume";

pub(super) fn run(client: &Client, paused: bool) -> Result<Answer, Failure> {
    client.change(Verb::SetPause(admin::SetPause { paused })).map(done)
}
