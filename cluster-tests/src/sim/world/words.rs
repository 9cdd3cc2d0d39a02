//! What people read in a trace.

use packmaster::proto::control::PeerMessage;
use packmaster::proto::control::peer_message::Kind as Message;
use packmaster::storage::task::DiskTask;

pub(super) fn describe(work: &DiskTask) -> String {
    match work {
        DiskTask::Append { file, offset, bytes } => {
            format!("append {} bytes at {offset} to {}", bytes.len(), file.name())
        }
        DiskTask::Promise { epoch } => format!("promise {epoch}"),
        DiskTask::CutBack { file, offset, .. } => format!("cut {} back to {offset}", file.name()),
        DiskTask::NoteSynced { generation, offset } => {
            format!("note that generation {generation} is synced up to {offset}")
        }
        DiskTask::Flip { target } => format!("flip to {target}"),
        DiskTask::Create { name } => format!("create {name}"),
        DiskTask::Rename { from, to } => format!("rename {from} to {to}"),
        DiskTask::Remove { names } => format!("remove {names:?}"),
    }
}

/// What it is, without what is in it.
pub(super) fn kind(message: &PeerMessage) -> String {
    let text = message.kind.as_ref().map(|kind| format!("{kind:?}")).unwrap_or_default();
    text.split('(').next().unwrap_or_default().to_string()
}

/// A message in a line; None for what comes all the time.
pub(super) fn words(message: &PeerMessage) -> Option<String> {
    let tip = |tip: &Option<packmaster::proto::replication::Tip>| {
        tip.as_ref().map_or("-".into(), |tip| {
            let chain: String =
                tip.chain.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
            format!("{}/{}@{}:{chain}", tip.epoch, tip.seq, tip.offset)
        })
    };
    Some(match message.kind.as_ref()? {
        Message::Beat(_) | Message::Confirm(_) | Message::ConfirmReply(_) => return None,
        Message::Raft(raft) if raft.entries.is_empty() && !raft.reject => return None,
        Message::Raft(raft) => format!(
            "raft type {} term {} index {} {} entries, commit {}{}",
            raft.msg_type,
            raft.term,
            raft.index,
            raft.entries.len(),
            raft.commit,
            if raft.reject { " REJECT" } else { "" }
        ),
        Message::Append(append) => format!(
            "append {} epoch {} g{} prev {} {} bytes{} commit {}{}",
            append.number,
            append.epoch,
            append.generation,
            tip(&append.prev),
            append.transactions.len(),
            append.piece.as_ref().map_or(String::new(), |piece| format!(
                ", {} at {} of the one up to {}",
                piece.data.len(),
                piece.offset,
                tip(&piece.end)
            )),
            tip(&append.commit),
            if append.want_reply { " reply" } else { "" }
        ),
        Message::AppendReply(reply) => format!(
            "append reply to {}, {} are here, epoch {} g{} durable {} {}{} {} points",
            reply.number,
            reply.incoming.as_ref().map_or(0, |incoming| incoming.bytes),
            reply.epoch,
            reply.generation,
            tip(&reply.durable),
            if reply.matched { "matched" } else { "no match" },
            if reply.hello { " hello" } else { "" },
            reply.points.len()
        ),
        Message::FenceReport(report) => format!(
            "fence report epoch {} at {:?} next {} {}",
            report.epoch,
            report.position.as_ref().map(|p| (p.generation, tip(&p.tip))),
            report.next_generation,
            report.suspect
        ),
        Message::FetchReply(reply) => {
            format!("fetch reply {} at {}: {} bytes", reply.id, reply.offset, reply.data.len())
        }
        Message::BlockList(list) => format!(
            "block list {} from {}: {} bytes of hashes, base of {}{}",
            list.id,
            list.first,
            list.hashes.len(),
            list.base_len,
            if list.counting { ", counting" } else { "" }
        ),
        Message::ClientRequest(request) => {
            let ask = format!("{:?}", request.ask);
            format!(
                "request {} epoch {}: {}",
                request.id,
                request.epoch,
                ask.chars().take(100).collect::<String>()
            )
        }
        other => {
            let text = format!("{other:?}");
            text.chars().take(220).collect()
        }
    })
}
