use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

fn at(ms: u64) -> Now {
    Now { mono_us: 1 + 1000 * ms, wall_us: 0 }
}

/// All of them have the base, and A is master.
fn all_have() -> Sources {
    let mut sources = Sources::new([A, B, C]);
    sources.set_master(Some(A));
    assert_eq!(sources.probe(at(0)), [A, B, C]);
    [A, B, C].into_iter().for_each(|id| sources.on_probe_reply(id, true, at(0)));
    sources
}

fn ask_all(plan: &mut Plan, sources: &Sources, now: Now) -> Vec<(NodeId, u64)> {
    std::iter::from_fn(|| plan.next(sources, now, |_| 10)).map(|ask| (ask.of, ask.block)).collect()
}

fn give(plan: &mut Plan, sources: &mut Sources, from: NodeId, block: u64, now: Now) {
    assert!(plan.on_reply(sources, from, block, now));
    plan.proved(sources, from, block);
    plan.written(block);
}

#[test]
fn everybody_is_asked_but_the_master_and_only_what_is_missing_is() {
    let mut sources = all_have();
    let have = [false, true, false, true, true, false, false];
    let mut plan = Plan::new(have.to_vec(), None);
    let asked = ask_all(&mut plan, &sources, at(1));
    assert_eq!(asked, [(B, 0), (C, 2), (B, 5), (C, 6)]);
    for (of, block) in asked {
        assert!(!plan.is_complete());
        give(&mut plan, &mut sources, of, block, at(2));
    }
    assert!(plan.is_complete());
}

#[test]
fn a_few_blocks_are_under_way_and_the_next_follow_when_those_are_on_the_disk() {
    let mut sources = all_have();
    let mut plan = Plan::new(vec![false; 20], None);
    assert_eq!(ask_all(&mut plan, &sources, at(1)).len(), UNDER_WAY_MAX);
    assert!(plan.on_reply(&mut sources, B, 0, at(2)));
    plan.proved(&mut sources, B, 0);
    assert_eq!(plan.next(&sources, at(2), |_| 10), None, "it waits for the disk");
    plan.written(0);
    assert_eq!(ask_all(&mut plan, &sources, at(3)), [(B, 6)]);
    assert!(!plan.on_reply(&mut sources, C, 0, at(4)), "it is here already");
}

#[test]
fn a_bad_block_is_asked_of_another_and_its_sender_of_nothing_for_a_while() {
    let mut sources = all_have();
    let mut plan = Plan::new(vec![false; 3], None);
    assert_eq!(ask_all(&mut plan, &sources, at(1)), [(B, 0), (C, 1), (B, 2)]);
    assert!(plan.on_reply(&mut sources, B, 0, at(2)));
    assert_eq!(sources.refuse(B, at(2)), 5000);
    plan.bad(B, 0);
    let again = plan.next(&sources, at(2), |_| 10).unwrap();
    assert_eq!(again, Ask { of: C, block: 0, elsewhere: true });
    assert_eq!(ask_all(&mut plan, &sources, at(2)), [(C, 2)]);
    assert_eq!(sources.usable(at(5001)), [C, A]);
    assert_eq!(sources.usable(at(5002)), [B, C, A]);
    assert_eq!(sources.refuse(B, at(6000)), 10_000);
    // A new attempt does not forget it.
    sources.begin_again();
    sources.on_probe_reply(B, true, at(7000));
    assert_eq!(sources.usable(at(7000)), []);
}

#[test]
fn what_nobody_else_has_is_asked_of_the_master_and_then_of_all_again() {
    let mut sources = all_have();
    let mut plan = Plan::new(vec![false], None);
    let mut asked = Vec::new();
    for ms in 1..=6 {
        let ask = plan.next(&sources, at(ms), |_| 10).unwrap();
        asked.push((ask.of, ask.elsewhere));
        assert!(plan.on_reply(&mut sources, ask.of, 0, at(ms)));
        plan.absent(&mut sources, ask.of, 0);
    }
    let round = [(B, false), (C, true), (A, true)];
    assert_eq!(asked, [round, round].concat());
}

#[test]
fn a_silent_source_loses_its_questions_and_has_more_patience_the_next_time() {
    let mut sources = all_have();
    sources.lacks(C);
    sources.lacks(A);
    let mut plan = Plan::new(vec![false; 4], None);
    assert_eq!(ask_all(&mut plan, &sources, at(1000)), [(B, 0), (B, 1), (B, 2)]);
    // One answer shows that it is there.
    give(&mut plan, &mut sources, B, 0, at(3000));
    assert_eq!(plan.expire(&mut sources, at(5999)), []);
    assert_eq!(plan.expire(&mut sources, at(6000)), [B]);
    // Nobody else has it: B again, and this time it may take twice as long.
    assert_eq!(ask_all(&mut plan, &sources, at(6000)), [(B, 1), (B, 2), (B, 3)]);
    assert_eq!(plan.expire(&mut sources, at(11_999)), []);
    assert_eq!(plan.expire(&mut sources, at(12_000)), [B]);
    // A late answer is as good as any.
    give(&mut plan, &mut sources, B, 3, at(12_001));
}

#[test]
fn whose_connection_is_gone_is_asked_anew_whether_it_has_it() {
    let mut sources = all_have();
    let mut plan = Plan::new(vec![false; 2], None);
    assert_eq!(ask_all(&mut plan, &sources, at(1)), [(B, 0), (C, 1)]);
    sources.on_connection(B, false);
    plan.give_back_all_of(B, true);
    assert_eq!(plan.next(&sources, at(2), |_| 10), Some(Ask { of: C, block: 0, elsewhere: true }));
    assert_eq!(sources.probe(at(2)), [B]);
    // Open again: the question may have been lost, and is asked of the same.
    sources.on_connection(C, true);
    plan.give_back_all_of(C, false);
    assert_eq!(ask_all(&mut plan, &sources, at(3)), [(C, 0), (C, 1)]);
}

#[test]
fn when_nobody_has_it_there_is_no_hope() {
    let mut sources = Sources::new([A, B]);
    for ms in [0, 700, 1400] {
        assert!(!sources.is_hopeless());
        assert_eq!(sources.probe(at(ms)), [A, B]);
        sources.on_probe_reply(A, false, at(ms));
    }
    assert!(sources.is_hopeless(), "A says no, and B nothing");
    assert!(!sources.all_lack_it());
    sources.on_probe_reply(B, true, at(1500));
    assert!(!sources.is_hopeless());
    sources.refuse(B, at(1600));
    assert!(!sources.is_hopeless(), "it may be good again");
}

#[test]
fn so_many_bytes_a_second_and_no_more() {
    let mut sources = all_have();
    let mut plan = Plan::new(vec![false; 200], Some(1000));
    let mut given = 0;
    for ms in 0..1000 {
        for (of, block) in ask_all(&mut plan, &sources, at(10_000 + ms)) {
            give(&mut plan, &mut sources, of, block, at(10_000 + ms));
            given += 10;
        }
        assert!(plan.due_us().is_some());
    }
    assert!((900..=1150).contains(&given), "{given} bytes in a second");
}
