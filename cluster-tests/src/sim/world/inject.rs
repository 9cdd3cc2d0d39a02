//! Faults, done.

use packmaster::node::core::Input;
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{AdminRequest, Pack, PackVerb, Promote, SetPause};

use super::{Event, World};
use crate::sim::faults::Fault;

impl World {
    pub(super) fn next_fault(&mut self) {
        if self.mending {
            return;
        }
        let (wait, fault) =
            self.schedule.next(&mut self.rng, self.hosts.len(), self.options.clients);
        self.at(wait, Event::Fault);
        self.trace.line(format_args!("FAULT {fault:?}"));
        self.inject(fault);
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { node, power, down_us } => {
                if self.hosts[node].process.is_some() {
                    self.count(if power { "power failure" } else { "kill" });
                    self.dies(node, power, down_us);
                }
            }
            Fault::CrashInDisk { node, changes, power, down_us } => {
                if self.hosts[node].process.is_some() {
                    self.hosts[node].doom = Some((changes, power, down_us));
                }
            }
            Fault::CrashAll { power } => {
                for node in 0..self.hosts.len() {
                    if self.hosts[node].process.is_some() {
                        let down_us = self.rng.between(1000, 500_000);
                        self.dies(node, power, down_us);
                    }
                }
            }
            Fault::Stall { node, us } => {
                if self.hosts[node].process.is_some() && !self.hosts[node].stalled {
                    self.hosts[node].stalled = true;
                    self.at(us, Event::Resume { node });
                }
            }
            Fault::Cut { ways, us } => ways.into_iter().for_each(|way| self.cut(way, us)),
            Fault::Lossy { permille, us } => {
                self.loss_permille = permille;
                self.at(us, Event::NoLoss);
            }
            Fault::Laggy { us_max, us } => {
                self.lag_us = us_max;
                self.at(us, Event::NoLag);
            }
            Fault::SlowDisk { node, factor, us } => {
                self.hosts[node].slow = factor;
                self.at(us, Event::FastDisk { node });
            }
            Fault::Promote { to, by } => {
                let promote = Promote {
                    node: format!("n{}", to + 1),
                    force: self.rng.chance(200),
                    ..Promote::default()
                };
                self.ask(by, Verb::Promote(promote));
            }
            Fault::Pack { by } => self.ask(by, Verb::Pack(Pack { verb: PackVerb::Start.into() })),
            Fault::PackCancel { by } => {
                self.ask(by, Verb::Pack(Pack { verb: PackVerb::Cancel.into() }));
            }
            Fault::Hold { by, us } => {
                self.ask(by, Verb::SetPause(SetPause { paused: true }));
                self.at(us, Event::Unhold { by });
            }
            Fault::Stop { node, down_us } => {
                self.hosts[node].stop_down_us = down_us;
                self.put(node, Input::Stop);
            }
            Fault::KillClient { client } => {
                if self.clients[client].connection.is_some() {
                    self.hang_up(client);
                }
            }
        }
    }

    pub(super) fn resume(&mut self, node: usize) {
        if !self.hosts[node].stalled {
            return;
        }
        self.hosts[node].stalled = false;
        self.trace.line(format_args!("n{} goes on", node + 1));
        for event in std::mem::take(&mut self.hosts[node].deferred) {
            // Its clock has gone on: what came meanwhile is let in first.
            match event {
                Event::Wake { .. } => {}
                other => {
                    let after = self.rng.below(2000);
                    self.at(after, other);
                }
            }
        }
        if let Some(process) = &mut self.hosts[node].process {
            process.wake_at = None;
        }
        self.wake_soon(node, 10_000);
    }

    pub(super) fn ask(&mut self, by: usize, verb: Verb) {
        self.requests += 1;
        let request = self.requests;
        let message = AdminRequest { id: request, asked_by: "somebody".into(), verb: Some(verb) };
        self.put(by, Input::Admin { request, message });
    }
}
