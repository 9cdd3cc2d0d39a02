//! `ctl config`: settings that hold for the whole cluster, at once.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use super::client::Client;
use super::{Answer, Failure, done};
use crate::admin::config::{Shown, readable};
use crate::proto::admin;
use crate::proto::admin::admin_request::Verb as Ask;

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Every setting: what holds, and what it is for
    #[command(after_help = "Example: packmaster ctl config show")]
    Show,
    /// Change one
    #[command(after_help = "\
It is decided through Raft, kept in the history, and holds on every node from then on.
Examples: packmaster ctl config set pack.garbage_share 50
          packmaster ctl config set pack.hours 22-5
          packmaster ctl config set pack.rate 20MiB
          packmaster ctl config set durability all
          packmaster ctl config set pack.rate default")]
    Set {
        /// As `config show` has it
        name: String,
        /// Such as 50, 20MiB, 12h or 22-5; `default` for none
        value: String,
    },
}

pub(super) fn run(client: &Client, verb: &Verb) -> Result<Answer, Failure> {
    match verb {
        Verb::Show => show(client),
        Verb::Set { name, value } => {
            let set = admin::ConfigSet { name: name.clone(), value: value.clone() };
            client.change(Ask::ConfigSet(set)).map(done)
        }
    }
}

fn show(client: &Client) -> Result<Answer, Failure> {
    let shown: Shown = client.read(Ask::ConfigShow(admin::ConfigShow {}))?;
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["setting", "value", "unit", ""]);
    for setting in &shown.settings {
        table.add_row([&setting.name, &readable(setting), &setting.unit, &setting.help]);
    }
    let json = serde_json::to_value(&shown).expect("settings are always representable");
    Ok(Answer { text: table.to_string(), json, code: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::config::show as told;
    use crate::admin::data_reply;
    use crate::ctl::fake_node::FakeNode;
    use crate::proto::control::ControlState;
    use std::time::Duration;

    #[test]
    fn show_lists_and_set_sends_what_was_typed() {
        let node = FakeNode::start(|request| {
            Some(match request.verb.unwrap() {
                Ask::ConfigShow(_) => {
                    data_reply(request.id, &told("c", &ControlState::default(), 1))
                }
                Ask::ConfigSet(set) => {
                    FakeNode::done(request.id, &format!("{} is {:?}", set.name, set.value))
                }
                _ => panic!("not asked for by config"),
            })
        });
        let client = Client::new(vec![node.address.clone()], Duration::from_secs(5));
        let shown = run(&client, &Verb::Show).unwrap();
        assert!(shown.text.contains("pack.min_distance") && shown.text.contains("1h (default)"));
        assert_eq!(shown.json["settings"][0]["name"], "pack.garbage_share");
        let set = Verb::Set { name: "pack.hours".into(), value: "22-5".into() };
        assert_eq!(run(&client, &set).unwrap().text, "pack.hours is \"22-5\"");
    }
}
