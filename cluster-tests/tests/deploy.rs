//! What `deploy/` offers is what the program takes.

use packmaster::config::Config;

#[test]
fn the_configuration_for_three_hosts_is_good_on_each_of_them() {
    let text = include_str!("../../deploy/three-hosts/packmaster.toml");
    for (node, durus) in [("n1", "10.0.0.1:2972"), ("n2", "10.0.0.2:2972"), ("n3", "10.0.0.3:2972")]
    {
        // As the systemd unit does it.
        let config = Config::parse(text, "packmaster.toml", &[format!("node={node}")]).unwrap();
        let listen = config.listen.durus[0].to_string();
        assert_eq!((config.me().name.as_str(), listen.as_str()), (node, durus));
        assert_eq!(config.members.len(), 3);
    }
}

/// What systemd.exec(5) has in the groups that the unit takes away, as far as a node needs it.
const TAKEN_AWAY: [(&str, &[&str]); 2] =
    [("setpriority", &["@resources"]), ("chown", &["@chown", "@privileged"])];

/// Later lines of a filter add to the earlier ones, or, after a ~, take away.
#[test]
fn the_unit_lets_jobs_stand_back_and_sockets_be_given_to_a_group() {
    let unit = include_str!("../../deploy/systemd/packmaster.service");
    for (call, groups) in TAKEN_AWAY {
        let mut allowed = false;
        for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
            let (takes, words) =
                line.strip_prefix('~').map_or((false, line), |words| (true, words));
            let is_meant = |word: &str| {
                word == call || groups.contains(&word) || !takes && word == "@system-service"
            };
            if words.split(' ').any(is_meant) {
                allowed = !takes;
            }
        }
        assert!(allowed, "{call} is refused");
    }
    // Neither takes a capability.
    assert!(unit.contains("\nCapabilityBoundingSet=\n"));
}
