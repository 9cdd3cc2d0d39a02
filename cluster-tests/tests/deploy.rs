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
