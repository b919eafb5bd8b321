//! What settings come out of a text, and what an operator reads when none do.

use super::*;

const PORT: &str = "[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/run/vm1.sock\"\n";
const TAP: &str = "[[port]]\nname = \"up\"\ntype = \"tap\"\ndevice = \"rs0\"\n";

fn parse(text: &str) -> Result<Settings, ConfigErrors> {
    Settings::from_toml(text, Path::new("rs.toml"))
}

fn good(text: &str) -> Settings {
    parse(text).unwrap_or_else(|errors| panic!("unexpected: {errors}"))
}

/// The first lines of all problems: position and message.
fn bad(text: &str) -> Vec<String> {
    let errors = parse(text).expect_err("the text has a mistake");
    let first_line = |problem: &Problem| problem.to_string().lines().next().unwrap().to_owned();
    errors.problems().iter().map(first_line).collect()
}

/// The only problem's first line.
fn bad1(text: &str) -> String {
    let mut problems = bad(text);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

fn vhost_user(port: &PortSettings) -> &VhostUserSettings {
    match &port.kind {
        PortKind::VhostUser(settings) => settings,
        PortKind::Tap(_) => panic!("{} is a tap", port.name),
    }
}

#[test]
fn the_least_file_has_the_documented_defaults() {
    let settings = good(PORT);
    assert_eq!(
        settings.workers,
        WorkerSettings { count: 1, mode: PollMode::Adaptive, cpus: vec![] }
    );
    let table =
        MacTableSettings { ageing: Duration::from_secs(300), capacity: 131_072, per_port: 1024 };
    assert_eq!(settings.mac_table, table);
    assert_eq!(settings.sandbox, SandboxSettings { mode: SandboxMode::On, user: None });
    assert_eq!(settings.log, LogSettings { level: log::Level::Info, format: None });
    let port = VhostUserSettings {
        socket: "/run/vm1.sock".into(),
        role: SocketRole::Server,
        owner: None,
        mode: None,
        queue_pairs: 8,
        mtu: None,
    };
    let kind = PortKind::VhostUser(port);
    assert_eq!(
        settings.ports,
        [PortSettings {
            name: "vm1".into(),
            kind,
            mac_limit: None,
            macs: Vec::new(),
            isolation: Isolation::Open
        }]
    );
}

#[test]
fn the_documented_example_parses_and_shows_the_defaults() {
    let text = include_str!("../../docs/ringswitch.toml");
    let settings = good(text);
    assert_eq!(settings.workers, WorkerSettings::default());
    assert_eq!(settings.mac_table, MacTableSettings::default());
    assert_eq!(settings.sandbox.mode, SandboxMode::default());
    assert_eq!(settings.sandbox.user.as_deref(), Some("ringswitch"));
    assert_eq!((settings.ports.len(), settings.mirrors.len()), (4, 1));
    let [vm1, vm2, uplink, _] = &settings.ports[..] else { unreachable!() };
    assert_eq!(vm1.mac_limit, Some(settings.mac_table.limit(vm2)));
    assert_eq!(vhost_user(vm1).queue_pairs, vhost_user(vm2).queue_pairs);
    assert_eq!(vhost_user(vm1).role, vhost_user(vm2).role);
    assert_eq!(vhost_user(vm1).mode, Some(0o660));
    assert_eq!(vhost_user(vm1).owner.as_deref(), Some("root:root"));
    let tap = TapSettings {
        device: "rs0".into(),
        mtu: Some(1500),
        bridge: Some("br0".into()),
        uplink: true,
    };
    assert_eq!(uplink.kind, PortKind::Tap(tap));
}

const PAGE: &str = include_str!("../../docs/configuration.md");

#[test]
fn the_example_and_the_page_name_every_key() {
    let example = include_str!("../../docs/ringswitch.toml");
    let tables = [
        ("[workers]", 3),
        ("[mac-table]", 3),
        ("[api]", 3),
        ("[sandbox]", 2),
        ("[log]", 2),
        ("[[port]]", 15),
        ("[[mirror]]", 3),
    ];
    for (table, count) in tables {
        // The error about an unknown key lists the known ones.
        let error = bad1(&format!("{table}\nsurplus = 1\n"));
        let keys = error.split("`, expected ").nth(1).expect("the keys are listed");
        let keys: Vec<_> = keys.split('`').skip(1).step_by(2).collect();
        assert_eq!(keys.len(), count, "{keys:?}");
        for key in keys {
            assert!(example.contains(&format!("\n{key} = ")), "{key} in the example");
            assert!(PAGE.contains(&format!("\n| `{key}` |")), "{key} on the page");
        }
    }
}

/// The fenced blocks of the page in `language`.
fn page_blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let blocks = PAGE.split(&fence).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn the_examples_of_the_page_are_right() {
    let blocks = page_blocks("toml");
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let port = if block.contains("[[port]]") { "" } else { PORT };
        good(&format!("{block}{port}"));
    }
    let text = "[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/a\"\n\n\
                [[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/b\"\nmtu = 70000\n";
    let shown = parse(text).expect_err("two mistakes").to_string();
    assert!(page_blocks("text")[0].contains(&shown), "{shown}");
}

#[test]
fn every_key_is_taken_over() {
    let settings = good(
        "[workers]\ncount = 2\nmode = \"poll\"\ncpus = [3, 1]\n\
         [mac-table]\nageing-seconds = 20\ncapacity = 100\nper-port = 7\n\
         [sandbox]\nmode = \"strict\"\nuser = \"1000:kvm\"\n\
         [log]\nlevel = \"trace\"\nformat = \"json\"\n\
         [[port]]\nname = \"a\"\ntype = \"vhost-user\"\nsocket = \"/a\"\nrole = \"client\"\n\
         queue-pairs = 64\nmtu = 65535\nmac-limit = 100\n\
         [[port]]\nname = \"b\"\ntype = \"tap\"\ndevice = \"t0\"\nmtu = 65521\n",
    );
    let workers = WorkerSettings { count: 2, mode: PollMode::Poll, cpus: vec![3, 1] };
    assert_eq!(settings.workers, workers);
    let sandbox = SandboxSettings { mode: SandboxMode::Strict, user: Some("1000:kvm".into()) };
    assert_eq!(settings.sandbox, sandbox);
    let log = LogSettings { level: log::Level::Trace, format: Some(LogFormat::Json) };
    assert_eq!(settings.log, log);
    let table = MacTableSettings { ageing: Duration::from_secs(20), capacity: 100, per_port: 7 };
    assert_eq!(settings.mac_table, table);
    let a = vhost_user(&settings.ports[0]);
    assert_eq!((a.role, a.queue_pairs, a.mtu), (SocketRole::Client, 64, Some(65535)));
    assert_eq!(settings.ports[0].mac_limit, Some(100));
    let tap = TapSettings { device: "t0".into(), mtu: Some(65521), bridge: None, uplink: false };
    assert_eq!(settings.ports[1].kind, PortKind::Tap(tap));
}

#[test]
fn the_uplink_may_fill_the_table_and_other_ports_may_not() {
    let settings = good(&format!("{PORT}mac-limit = 3\n{TAP}uplink = true\n"));
    let table = &settings.mac_table;
    assert_eq!(table.limit(&settings.ports[0]), 3);
    assert_eq!(table.limit(&settings.ports[1]), 131_072);
    let settings = good(&format!("{PORT}{TAP}"));
    assert_eq!(settings.mac_table.limit(&settings.ports[0]), 1024);
    assert_eq!(settings.mac_table.limit(&settings.ports[1]), 1024);
}

#[test]
fn a_small_table_lowers_the_default_limit_of_a_port() {
    let settings = good(&format!("[mac-table]\ncapacity = 16\n{PORT}"));
    assert_eq!(settings.mac_table.per_port, 16);
    let message = bad1(&format!("[mac-table]\ncapacity = 16\nper-port = 17\n{PORT}"));
    assert_eq!(message, "rs.toml:3:12: `per-port` is 17; expected 1 to 16");
}

#[test]
fn numbers_are_refused_just_outside_their_ranges() {
    for (text, expected) in [
        ("[workers]\ncount = 0\n", "2:9: `count` is 0; expected 1 to 64"),
        ("[workers]\ncount = 65\n", "2:9: `count` is 65; expected 1 to 64"),
        ("[workers]\ncount = -1\n", "2:9: `count` is -1; expected 1 to 64"),
        ("[workers]\ncpus = [1024]\n", "2:9: `cpus` is 1024; expected 0 to 1023"),
        ("[mac-table]\nageing-seconds = 0\n", "2:18: `ageing-seconds` is 0; expected 1 to 1000000"),
        ("[mac-table]\ncapacity = 0\n", "2:12: `capacity` is 0; expected 1 to 16777216"),
    ] {
        assert_eq!(bad1(&format!("{text}{PORT}")), format!("rs.toml:{expected}"));
    }
    for (text, expected) in [
        ("queue-pairs = 0\n", "5:15: `queue-pairs` is 0; expected 1 to 64"),
        ("queue-pairs = 65537\n", "5:15: `queue-pairs` is 65537; expected 1 to 64"),
        ("mtu = 67\n", "5:7: `mtu` is 67; expected 68 to 65535"),
        ("mtu = 65536\n", "5:7: `mtu` is 65536; expected 68 to 65535"),
        ("mac-limit = 131073\n", "5:13: `mac-limit` is 131073; expected 1 to 131072"),
    ] {
        assert_eq!(bad1(&format!("{PORT}{text}")), format!("rs.toml:{expected}"));
    }
    let message = bad1(&format!("{TAP}mtu = 65522\n"));
    assert_eq!(message, "rs.toml:5:7: `mtu` is 65522; expected 68 to 65521");
}

#[test]
fn cpus_must_fit_the_workers() {
    let message = bad1(&format!("[workers]\ncount = 3\ncpus = [0, 1]\n{PORT}"));
    assert_eq!(
        message,
        "rs.toml:3:8: `cpus` names 2 CPUs and `count` is 3; expected one CPU per worker, or none"
    );
    let message = bad1(&format!("[workers]\ncount = 2\ncpus = [1, 1]\n{PORT}"));
    assert_eq!(message, "rs.toml:3:12: CPU 1 is named twice; expected a CPU per worker");
}

#[test]
fn a_repeated_name_socket_or_device_is_reported_with_both_lines() {
    let text = format!("{PORT}{PORT}{TAP}{TAP}");
    assert_eq!(
        bad(&text),
        [
            "rs.toml:6:8: port name \"vm1\" is already taken by the port at line 2; \
             expected one of its own",
            "rs.toml:8:10: socket \"/run/vm1.sock\" is already taken by the port at line 4; \
             expected one of its own",
            "rs.toml:14:8: port name \"up\" is already taken by the port at line 10; \
             expected one of its own",
            "rs.toml:16:10: device \"rs0\" is already taken by the port at line 12; \
             expected one of its own",
        ]
    );
    // Two spellings of one path.
    let second = PORT.replace("vm1\"", "vm2\"").replace("/run/vm1", "/run/./vm1");
    assert!(bad1(&format!("{PORT}{second}")).contains("already taken by the port at line 4"));
}

#[test]
fn there_is_one_uplink_at_most() {
    let second = TAP.replace("up", "up2").replace("rs0", "rs1");
    let message = bad1(&format!("{TAP}uplink = true\n{second}uplink = true\n"));
    assert_eq!(
        message,
        "rs.toml:10:10: this is a second uplink beside the port at line 5; \
         expected `uplink` on one port"
    );
    good(&format!("{TAP}uplink = true\n{second}uplink = false\n"));
}

#[test]
fn a_switch_has_one_to_1024_ports_or_an_api() {
    assert_eq!(
        bad1(""),
        "rs.toml: there is no port; expected at least one, as [[port]] or --port, or an API by \
         which they come"
    );
    assert_eq!(good("[api]\nsocket = \"/api\"\n").ports, []);
    let ports = |count: usize| -> String {
        (0..count)
            .map(|i| format!("[[port]]\nname = \"p{i}\"\ntype = \"tap\"\ndevice = \"t{i}\"\n"))
            .collect()
    };
    assert_eq!(good(&ports(1024)).ports.len(), 1024);
    assert_eq!(bad1(&ports(1025)), "rs.toml:4097:1: there are 1025 ports; expected at most 1024");
}

#[test]
fn ports_are_open_isolated_or_in_a_group() {
    let port = |name: &str, more: &str| {
        format!("[[port]]\nname = \"{name}\"\ntype = \"tap\"\ndevice = \"{name}\"\n{more}\n")
    };
    let text = port("a", "isolated = true") + &port("b", "group = \"red\"") + &port("c", "");
    let isolations: Vec<_> = good(&text).ports.into_iter().map(|port| port.isolation).collect();
    assert_eq!(isolations, [Isolation::Isolated, Isolation::Group("red".into()), Isolation::Open]);
    assert_eq!(
        bad1(&port("a", "isolated = true\ngroup = \"red\"")),
        "rs.toml:6:9: `group` is set on a port that is isolated; expected one of them"
    );
    assert_eq!(
        bad1(&port("a", "group = \"\"")),
        "rs.toml:5:9: `group` is \"\"; expected 1 to 32 of A-Z a-z 0-9 _ . -"
    );
}

#[test]
fn addresses_are_those_of_stations_and_at_one_port() {
    let port = |name: &str, macs: &str| {
        format!("[[port]]\nname = \"{name}\"\ntype = \"tap\"\ndevice = \"{name}\"\nmacs = {macs}\n")
    };
    let good = good(&port("a", "[\"52:54:00:AB:cd:01\", \"02:00:00:00:00:01\"]"));
    assert_eq!(good.ports[0].macs, [[0x52, 0x54, 0, 0xab, 0xcd, 1], [2, 0, 0, 0, 0, 1]]);
    for wrong in [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "53:54:00:12:34:56",
        "52-54-00-12-34-56",
        "00:00:00:00:00:00",
        "+2:00:00:00:00:01",
        "2:0:0:0:0:1",
    ] {
        assert_eq!(
            bad1(&port("a", &format!("[{wrong:?}]"))),
            format!(
                "rs.toml:5:9: `macs` has {wrong:?}; expected addresses of stations, such as \"52:54:00:12:34:56\""
            )
        );
    }
    let twice = port("a", "[\"02:00:00:00:00:01\"]") + &port("b", "[\"02:00:00:00:00:01\"]");
    assert_eq!(
        bad1(&twice),
        "rs.toml:10:9: address \"02:00:00:00:00:01\" is already taken by the port at line 5; \
         expected one of its own"
    );
}

#[test]
fn mirrors_lead_from_a_port_to_one_without_another_use() {
    let port = |name: &str, more: &str| {
        format!("[[port]]\nname = \"{name}\"\ntype = \"tap\"\ndevice = \"{name}\"\n{more}\n")
    };
    let ports = port("a", "") + &port("b", "") + &port("up", "uplink = true");
    let mirror = |text: &str| format!("{ports}[[mirror]]\n{text}\n");
    let wanted = good(&mirror("port = \"a\"\nto = \"b\"\ndirections = \"in\""));
    let from = MirrorSettings { port: "a".into(), to: "b".into(), directions: Directions::In };
    assert_eq!(wanted.mirrors, [from]);
    for (wrong, message) in [
        ("to = \"b\"", "16:1: this mirror has no `port`; expected the name of a port"),
        ("port = \"a\"", "16:1: this mirror has no `to`; expected the name of a port"),
        ("port = \"a\"\nto = \"x\"", "18:6: `to` is \"x\"; expected the name of a port"),
        (
            "port = \"a\"\nto = \"up\"",
            "18:6: `to` is \"up\", the uplink; expected a port that has no other use",
        ),
        (
            "port = \"a\"\nto = \"b\"\ndirections = \"no\"",
            "19:14: `directions` is \"no\"; expected \"both\" or \"in\" or \"out\"",
        ),
        ("port = \"a\"\nto = \"b\"\n[[mirror]]\nport = \"b\"\nto = \"a\"", ""),
    ] {
        let problems = bad(&mirror(wrong));
        match message {
            "" => assert_eq!(problems.len(), 2, "each gets the other's: {problems:?}"),
            _ => assert_eq!(problems, [format!("rs.toml:{message}")]),
        }
    }
    let itself = bad(&mirror("port = \"a\"\nto = \"a\""));
    assert!(itself[0].contains("is mirrored to itself; expected another port"), "{itself:?}");
    let many = "[[mirror]]\nport = \"a\"\nto = \"b\"\n".repeat(17);
    assert!(bad1(&format!("{ports}{many}")).contains("there are 17 mirrors; expected at most 16"));
}

#[test]
fn required_keys_are_demanded_at_the_port() {
    assert_eq!(
        bad("[[port]]\ntype = \"vhost-user\"\n[[port]]\nname = \"t\"\ntype = \"tap\"\n\
             [[port]]\nname = \"x\"\n"),
        [
            "rs.toml:1:1: this port has no `name`; expected 1 to 32 of A-Z a-z 0-9 _ . -",
            "rs.toml:1:1: this port has no `socket`; expected the absolute path of a UNIX socket",
            "rs.toml:3:1: port \"t\" has no `device`; expected the name of a TAP interface",
            "rs.toml:6:1: port \"x\" has no `type`; expected \"vhost-user\" or \"tap\"",
        ]
    );
}

#[test]
fn keys_of_another_type_of_port_are_refused() {
    assert_eq!(
        bad(&format!("{PORT}device = \"t0\"\nuplink = true\n{TAP}queue-pairs = 2\n")),
        [
            "rs.toml:5:10: `device` is a setting of a tap port; expected none here",
            "rs.toml:6:10: `uplink` is a setting of a tap port; expected none here",
            "rs.toml:11:15: `queue-pairs` is a setting of a vhost-user port; expected none here",
        ]
    );
}

#[test]
fn a_client_has_no_socket_file_to_own() {
    let problems = bad(&format!("{PORT}role = \"client\"\nowner = \"root\"\nmode = \"0660\"\n"));
    assert_eq!(problems.len(), 2);
    assert!(problems[0].starts_with("rs.toml:6:9: `owner` is set, but with role = \"client\""));
    assert!(problems[1].starts_with("rs.toml:7:8: `mode` is set, but with role = \"client\""));
}

#[test]
fn words_outside_their_choice_are_refused() {
    assert_eq!(
        bad1(&format!("[workers]\nmode = \"fast\"\n{PORT}")),
        "rs.toml:2:8: `mode` is \"fast\"; expected \"adaptive\" or \"poll\""
    );
    assert_eq!(
        bad1(&PORT.replace("vhost-user", "vhost")),
        "rs.toml:3:8: `type` is \"vhost\"; expected \"vhost-user\" or \"tap\""
    );
    assert_eq!(
        bad1(&format!("{PORT}role = \"listen\"\n")),
        "rs.toml:5:8: `role` is \"listen\"; expected \"server\" or \"client\""
    );
}

#[test]
fn unusable_names_paths_owners_and_modes_are_refused() {
    let long_name = "n".repeat(33);
    for name in ["", "a b", "a/b", "ä", "a\\u001b", &long_name] {
        let message = bad1(&PORT.replace("\"vm1\"", &format!("\"{name}\"")));
        assert!(message.contains("expected 1 to 32 of"), "{message}");
        assert!(!message.contains('\u{1b}'), "escaped");
    }
    good(&PORT.replace("\"vm1\"", &format!("\"{}\"", "n".repeat(32))));
    let long_path = format!("/{}", "s".repeat(107));
    for path in
        ["", "vm1.sock", "./vm1", "/", "/run/", "/run/..", "/a\\nb", "/a\\u0000", &long_path]
    {
        let message = bad1(&PORT.replace("/run/vm1.sock", path));
        assert!(message.contains("expected an absolute path"), "{message}");
    }
    good(&PORT.replace("/run/vm1.sock", &format!("/{}", "s".repeat(106))));
    for owner in ["", ":", "u:", ":g", "u:g:h", "u g"] {
        let message = bad1(&format!("{PORT}owner = \"{owner}\"\n"));
        assert!(message.contains("expected \"user\" or \"user:group\""), "{message}");
    }
    for owner in ["qemu", "qemu:kvm", "64055:107"] {
        let settings = good(&format!("{PORT}owner = \"{owner}\"\n"));
        assert_eq!(vhost_user(&settings.ports[0]).owner.as_deref(), Some(owner));
    }
    for mode in ["", "66", "0888", "+660", "-660", "1777", "00660", "rw-"] {
        let message = bad1(&format!("{PORT}mode = \"{mode}\"\n"));
        assert!(message.contains("expected 3 octal digits"), "{message}");
    }
    for (mode, bits) in [("0660", 0o660), ("600", 0o600), ("0000", 0), ("777", 0o777)] {
        let settings = good(&format!("{PORT}mode = \"{mode}\"\n"));
        assert_eq!(vhost_user(&settings.ports[0]).mode, Some(bits));
    }
}

#[test]
fn sockets_of_the_switch_are_no_port_s_and_metrics_stay_on_the_host() {
    let settings = good(&format!(
        "[api]\nsocket = \"/run/api\"\nmetrics = \"[::1]:9479\"\n[upgrade]\nsocket = \"/u\"\n{PORT}"
    ));
    assert_eq!(settings.api.as_deref(), Some(Path::new("/run/api")));
    assert_eq!(settings.metrics, "[::1]:9479".parse().ok());
    for (table, reason) in [
        ("[api]\nsocket = \"/run/vm1.sock\"", "the API socket is the socket of port \"vm1\", too"),
        ("[upgrade]\nsocket = \"/u\"\n[api]\nsocket = \"/u\"", "is the upgrade socket, too"),
        ("[api]\nsocket = \"api\"", "expected an absolute path"),
    ] {
        let message = bad1(&format!("{table}\n{PORT}"));
        assert!(message.contains(reason), "{message}");
    }
    for address in
        ["", "9479", "localhost:9479", "0.0.0.0:9479", "10.0.0.1:9479", "127.0.0.1:0", "[::]:1"]
    {
        let message = bad1(&format!("[api]\nmetrics = \"{address}\"\n{PORT}"));
        assert!(message.contains("expected a port of this host alone"), "{message}");
    }
}

#[test]
fn interface_names_are_those_that_linux_takes_literally() {
    for device in ["", ".", "..", "a/b", "a:b", "tap%d", "a b", "ä", "sixteen-bytes-xx"] {
        let message = bad1(&TAP.replace("rs0", device));
        assert!(message.contains("expected 1 to 15 printable"), "{message}");
    }
    good(&TAP.replace("rs0", "fifteen-bytes-x"));
    let message = bad1(&format!("{TAP}bridge = \"br 0\"\n"));
    assert!(message.starts_with("rs.toml:5:10: `bridge` is \"br 0\""), "{message}");
}

#[test]
fn a_tap_is_no_bridge_of_another() {
    let second = TAP.replace("up", "up2").replace("rs0", "rs1");
    let message = bad1(&format!("{TAP}bridge = \"rs1\"\n{second}"));
    assert_eq!(
        message,
        "rs.toml:5:10: bridge \"rs1\" is the TAP device of the port at line 9; expected a bridge"
    );
}

#[test]
fn syntax_and_type_errors_say_where_and_what_is_expected() {
    for (text, place, words) in [
        ("[workers\n", "1:9:", "expected `]`"),
        ("[workers]\ncount =\n", "2:8:", "value"),
        ("[workers]\ncount = \"4\"\n", "2:9:", "invalid type: string \"4\", expected an integer"),
        ("[workers]\ncpus = 3\n", "2:8:", "expected a sequence"),
        ("[workers]\nthreads = 3\n", "2:1:", "unknown field `threads`, expected one of `count`"),
        ("[[ports]]\n", "1:3:", "unknown field `ports`, expected one of `workers`"),
        ("[[port]]\nmode = 0660\n", "2:8:", "leading zero"),
        ("[[port]]\nuplink = \"yes\"\n", "2:10:", "expected a boolean"),
        ("[workers]\ncount = 1\ncount = 2\n", "3:1:", "duplicate key"),
    ] {
        let message = bad1(text);
        assert!(message.starts_with(&format!("rs.toml:{place}")), "{message}");
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn the_sandbox_is_one_of_four_for_somebody() {
    for (mode, expected) in SandboxMode::NAMES {
        assert_eq!(good(&format!("[sandbox]\nmode = \"{mode}\"\n{PORT}")).sandbox.mode, expected);
    }
    let message = bad1(&format!("[sandbox]\nmode = \"weak\"\n{PORT}"));
    let expected = "expected \"strict\" or \"on\" or \"log\" or \"off\"";
    assert_eq!(message, format!("rs.toml:2:8: `mode` is \"weak\"; {expected}"));
    for user in ["", ":kvm", "a:", "a b", "a:b:c"] {
        let message = bad1(&format!("[sandbox]\nuser = \"{user}\"\n{PORT}"));
        assert!(message.starts_with("rs.toml:2:8: `user` is "), "{message}");
    }
}

#[test]
fn the_faulty_part_of_a_line_is_marked() {
    let errors = parse(&format!("{PORT}\tmtu = 7 # ä\n")).expect_err("too small");
    let shown = "rs.toml:5:8: `mtu` is 7; expected 68 to 65535\n\
                 5 |  mtu = 7 # ä\n  \
                 |        ^";
    assert_eq!(errors.to_string(), shown);
    let problem = &errors.problems()[0];
    let position = Position { line: 5, column: 8, width: 1, text: "\tmtu = 7 # ä".into() };
    assert_eq!(problem.position, Some(position));
}

#[test]
fn a_hostile_line_is_shown_short_and_harmless() {
    let text = format!("{}\u{1b}[31m = 1\n", "é".repeat(100_000));
    let message = parse(&text).expect_err("no key").to_string();
    assert!(message.len() < 1000, "{} bytes", message.len());
    assert!(!message.contains('\u{1b}'));
    // A control character that arrives escaped must not leave unescaped.
    let message = parse("\"a\\u001b[31m\\nb\" = 1\n").expect_err("unknown key").to_string();
    assert!(message.contains("unknown field"), "{message}");
    assert!(!message.contains('\u{1b}'));
}

#[test]
fn nothing_that_a_file_holds_can_panic() {
    let text = format!("{PORT}mode = \"0660\"\nmtu = 9000\n{TAP}uplink = true\n# é\n");
    for end in 0..=text.len() {
        for junk in ["", "é", "\"", "[[", "=", "\r", "\0", "99999999999999999999"] {
            let head = &text.as_bytes()[..end];
            let text = String::from_utf8_lossy(head).into_owned() + junk;
            if let Err(errors) = parse(&text) {
                assert!(!errors.problems().is_empty());
                assert!(errors.to_string().starts_with("rs.toml:"));
            }
        }
    }
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(parse(&"a.".repeat(100_000)).is_err());
}

#[test]
fn a_file_is_loaded_or_the_reason_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rs.toml");
    let message = |path: &Path| Settings::load(path).expect_err("unusable").to_string();
    assert!(message(&path).contains("rs.toml: cannot read the configuration: No such file"));
    assert!(message(dir.path()).contains("cannot read the configuration: Is a directory"));
    std::fs::write(&path, PORT).unwrap();
    assert_eq!(Settings::load(&path), parse(PORT));
    std::fs::write(&path, b"# \xff\n").unwrap();
    assert!(message(&path).ends_with("no text at byte 2; expected TOML in UTF-8"));
    let comment = "#".repeat(1 << 20);
    std::fs::write(&path, &comment).unwrap();
    assert!(message(&path).contains("there is no port"));
    std::fs::write(&path, comment + "#").unwrap();
    assert!(message(&path).contains("the file is too large"));
}

#[test]
fn the_command_line_means_what_a_file_means() {
    let text = "[[port]]\nname = \"vm1\"\ntype = \"vhost-user\"\nsocket = \"/run/vm1.sock\"\n\
                [[port]]\nname = \"uplink\"\ntype = \"tap\"\ndevice = \"rs0\"\nuplink = true\n";
    let vm1 = ("vm1".to_owned(), PathBuf::from("/run/vm1.sock"));
    let settings = Settings::from_args(std::slice::from_ref(&vm1), Some("rs0".into()));
    assert_eq!(settings, parse(text));

    let ports = [vm1.clone(), vm1, ("b c".into(), "x".into())];
    let errors = Settings::from_args(&ports, Some("a/b".into())).expect_err("five mistakes");
    let messages: Vec<_> = errors.problems().iter().map(Problem::to_string).collect();
    assert_eq!(
        messages,
        [
            "port name \"vm1\" is already taken by another port; expected one of its own",
            "socket \"/run/vm1.sock\" is already taken by another port; expected one of its own",
            "port name \"b c\" is not usable; expected 1 to 32 of A-Z a-z 0-9 _ . -",
            "socket \"x\" is not absolute; expected an absolute path of at most 107 bytes",
            "`device` is \"a/b\", which can't be an interface; expected 1 to 15 printable ASCII \
             characters without / : % and spaces",
        ]
    );
    let message = Settings::from_args(&[], None).expect_err("no port").to_string();
    assert!(message.starts_with("there is no port"));
}
