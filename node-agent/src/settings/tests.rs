use super::*;

fn load(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let sources = Sources {
        files: vec![folder.path().join("image.toml"), folder.path().join("node.toml")],
        environment,
        ..Sources::default()
    };
    let shown = folder.path().display().to_string();
    Settings::load(&sources).map_err(|error| error.to_string().replace(&shown, ""))
}

#[test]
fn defaults_are_valid_and_known_as_such() {
    let settings = load(&[], &[]).unwrap();
    assert_eq!(settings.tries, 3);
    assert_eq!(settings.trial_deadline, Duration::from_secs(45 * 60));
    assert_eq!(settings.listen, Listen::Unix("/run/bascule/agent.sock".into()));
    assert!(settings.origins.iter().all(|(_, _, origin)| *origin == Origin::Default));
}

#[test]
fn later_sources_win_and_each_value_names_its_own() {
    let settings = load(
        &[
            ("image.toml", "[boot]\ntries = 2\n[trial]\ndeadline = \"10m\"\n"),
            ("image.toml.d/10-a.toml", "[boot]\n\ntries = 4\n"),
            ("node.toml", "[health]\nunits = [\"kubelet.service\"]\n"),
        ],
        &[("BASCULE_TRIAL_DEADLINE", "20m"), ("HOME", "/"), ("BASCULE_OPERATOR_SERVICE_HOST", "10.0.0.1")],
    )
    .unwrap();
    assert_eq!((settings.tries, settings.trial_deadline.as_secs()), (4, 1200));
    assert_eq!(settings.units, ["kubelet.service"]);
    let origin = |name| settings.origins.iter().find(|(key, ..)| *key == name).unwrap().2.to_string();
    assert!(origin("boot.tries").ends_with("image.toml.d/10-a.toml:3"), "{}", origin("boot.tries"));
    assert_eq!(origin("trial.deadline"), "$BASCULE_TRIAL_DEADLINE");
    assert_eq!(origin("slots.kind"), "default");
}

#[test]
fn of_settings_that_can_not_be_used_what_says_where_to_report_is_left() {
    let report = |files: &[(&str, &str)], environment: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let files = ["image.toml", "node.toml"].map(|name| folder.path().join(name)).to_vec();
        Settings::load_to_report(&Sources { files, environment, ..Sources::default() }).unwrap()
    };
    let image = ("image.toml", "[kubernetes]\nkubeconfig = \"/k\"\n[boot]\ntries = 5\n");
    let good = report(&[image], &[("BASCULE_NODE_NAME", "n1")]);
    assert_eq!((good.impediment, good.tries), (None, 5));
    for (broken, says) in [
        ("[boot]\ncolour = 1\n", "node.toml:2: there is no setting 'boot.colour'"),
        ("[boot]\ntries = 0\n", "boot.tries is '0'"),
        ("[slots]\na-data = 2\n", "slots.a-verity must be set"),
        ("no toml at all", "node.toml:1:"),
        ("[server]\nlisten = \"nowhere\"\n", "server.listen is 'nowhere'"),
    ] {
        let left = report(&[image, ("node.toml", broken)], &[("BASCULE_NODE_NAME", "n1")]);
        let why = left.impediment.clone().expect(broken);
        assert!(why.contains(says), "{why}");
        assert_eq!(left.look_settings().impediment, Some(why), "nothing but a report is made of them");
        assert_eq!((left.node_name.as_deref(), left.kubeconfig), (Some("n1"), Some("/k".into())), "{broken}");
        assert_eq!(left.tries, 3, "what nobody may act on is not kept");
    }
    let left = report(&[image], &[("BASCULE_NO_SUCH", "1"), ("BASCULE_NODE_NAME", "n1")]);
    assert!(left.impediment.is_some_and(|why| why.contains("$BASCULE_NO_SUCH: there is no setting")));
    assert_eq!((left.node_name.as_deref(), left.kubeconfig), (Some("n1"), Some("/k".into())));
}

/// What came with the machine is told through the API as what lies in a file.
#[test]
fn a_credential_that_can_not_be_used_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (image, credential) = (folder.path().join("image.toml"), folder.path().join("bascule.agent.toml"));
    std::fs::write(&image, "[kubernetes]\nkubeconfig = \"/k\"\n").unwrap();
    let sources = Sources { files: vec![image], credential: Some(credential.clone()), ..Sources::default() };
    std::fs::write(&credential, "[node]\nname = \"n1\"\n[repository]\nproxy = \"http://proxy:3128\"\n").unwrap();
    let settings = Settings::load_to_report(&sources).unwrap();
    assert_eq!((settings.node_name.as_deref(), settings.proxy.as_str()), (Some("n1"), "http://proxy:3128"));
    assert_eq!(settings.impediment, None);
    std::fs::write(&credential, "[node]\nname = \"n1\"\n[repository]\ntrust-root = \"/other.json\"\n").unwrap();
    let settings = Settings::load_to_report(&sources).unwrap();
    let why = settings.impediment.unwrap();
    assert!(why.contains("bascule.agent.toml:4: repository.trust-root can't come as a credential"), "{why}");
    assert_eq!(settings.node_name.as_deref(), Some("n1"), "and for which node");
    assert_eq!(settings.trust_root, PathBuf::from("/usr/lib/bascule/root.json"));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, expected) in [
        ("[boot]\ntrys = 3\n", "/image.toml:2: there is no setting 'boot.trys'; did you mean 'boot.tries'?"),
        ("tries = 3\n", "/image.toml:1: there is no setting 'tries': settings stand in sections"),
        ("[boot]\ntries = 0\n", "/image.toml:2: boot.tries is '0': write a whole number from 1 to 9"),
        ("[boot]\ntries = [\"1\"]\n", "/image.toml:2: boot.tries is one value, not a list"),
        (
            "[boot]\nbackend = \"grub\"\n",
            "/image.toml:2: boot.backend is 'grub': write one of auto, systemd-boot, gptprio",
        ),
        ("[slots]\na-data = 2\n", "default: slots.a-verity must be set: the four numbers under slots belong together"),
        ("[trial]\ndeadline = \"5s\"\n", "/image.toml:2: trial.deadline is '5s': write a time from 30 s to 86400 s"),
        ("[retry]\nfirst = \"1h\"\n", "/image.toml:2: retry.first must not be longer than retry.max"),
        ("[state]\ndirectory = \"var\"\n", "/image.toml:2: state.directory is 'var': write an absolute path"),
    ] {
        assert_eq!(load(&[("image.toml", text)], &[]).unwrap_err(), expected);
    }
    assert!(load(&[("image.toml", "[boot\n")], &[]).unwrap_err().starts_with("/image.toml:1: "));
    let error = load(&[], &[("BASCULE_BOOT_TRYS", "3")]).unwrap_err();
    assert!(error.starts_with("$BASCULE_BOOT_TRYS: there is no setting"), "{error}");
}

#[test]
fn every_default_can_be_read_and_every_variable_is_its_own() {
    let mut variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), KEYS.len());
}

/// The settings of the release on trial may be what is broken.
#[test]
fn a_guard_with_broken_settings_goes_by_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let [image, node] = ["image.toml", "node.toml"].map(|name| folder.path().join(name));
    let sources = Sources { files: vec![image.clone(), node.clone()], ..Sources::default() };
    let deadline = || {
        let (settings, error) = Settings::load_what_can_be_used(&sources).unwrap();
        (settings.trial_deadline.as_secs(), error.map(|error| error.to_string()))
    };
    std::fs::write(&image, "[trial]\ndeadline = \"10m\"\n").unwrap();
    std::fs::write(&node, "[boot]\ntries = 2\n").unwrap();
    assert_eq!(deadline(), (600, None));
    std::fs::write(&node, "[boot]\ntrys = 2\n").unwrap();
    let (seconds, error) = deadline();
    assert_eq!(seconds, 600, "the image's own file is good");
    assert!(error.unwrap().contains("node.toml:2"));
    std::fs::write(&image, "[trial\n").unwrap();
    let (seconds, error) = deadline();
    assert_eq!(seconds, 45 * 60, "the default");
    assert!(error.unwrap().contains("image.toml:1"));
}

/// The table of docs/agent.md.
fn table() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("| setting | environment | default | what for |\n|---|---|---|---|\n");
    for key in KEYS {
        let default = if key.default.is_empty() { "-".to_owned() } else { format!("`{}`", key.default) };
        let bounds = match key.kind {
            Kind::Whole(least, most) => format!(" {least} to {most}."),
            Kind::Duration(least, most) => format!(" {least} s to {most} s."),
            Kind::Percent => " 1 to 100.".to_owned(),
            Kind::Text
            | Kind::Path
            | Kind::Choice(_)
            | Kind::Product
            | Kind::Listen
            | Kind::Flag
            | Kind::Bytes
            | Kind::List => String::new(),
        };
        let _ = writeln!(text, "| `{}` | `{}` | {default} | {}{bounds} |", key.name, key.variable(), key.help);
    }
    text
}

#[test]
fn the_documentation_lists_every_setting() {
    const BEGIN: &str = "<!-- settings: begin -->\n";
    const END: &str = "<!-- settings: end -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        return;
    }
    assert_eq!(found, table(), "run this test once with UPDATE_DOCS=1 to write the table");
}
