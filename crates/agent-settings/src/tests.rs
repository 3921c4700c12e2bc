use super::*;

fn checked(text: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    std::fs::write(&path, text).unwrap();
    let shown = format!("{}/", folder.path().display());
    check(&path).map_err(|error| error.to_string().replace(&shown, ""))
}

#[test]
fn a_file_for_a_machine_is_checked_as_its_agent_would() {
    let good =
        "[node]\nname = \"n1\"\n[repository]\nproxy = \"http://proxy:3128\"\nextra-ca = [\"/etc/bascule/ca.pem\"]\n";
    assert_eq!(checked(good), Ok(good.to_owned()));
    assert_eq!(checked(""), Ok(String::new()), "nothing is said about the machine");
    for (text, expected) in [
        ("[node]\nnam = \"n1\"\n", "m.toml:2: there is no setting 'node.nam'; did you mean 'node.name'?"),
        ("[node]\nproduct = \"a b\"\n", "m.toml:2: node.product is 'a b'"),
        ("[kubernetes]\nkubeconfig = \"k\"\n", "m.toml:2: kubernetes.kubeconfig is 'k': write an absolute path"),
        ("[repository]\nextra-ca = \"/ca\"\n", "m.toml:2: repository.extra-ca is a list"),
        ("[repository]\nonly-extra-ca = \"yes\"\n", "m.toml:2: repository.only-extra-ca is 'yes': write true or false"),
        ("[boot]\nbackend = \"grub\"\n", "m.toml:2: boot.backend is 'grub': write one of auto, systemd-boot, gptprio"),
        ("[boot]\ntries = 10\n", "m.toml:2: boot.tries is '10': write a whole number from 1 to 9"),
        ("[server]\nlisten = \"80\"\n", "m.toml:2: server.listen is '80'"),
        ("[transfer]\npause-at-io-pressure = 0\n", "m.toml:2: transfer.pause-at-io-pressure is '0'"),
        ("[transfer]\nbytes-per-second = \"1M\"\n", "m.toml:2: transfer.bytes-per-second is '1M'"),
        ("[retry]\nfirst = \"1h\"\n", "m.toml:2: retry.first must not be longer than retry.max"),
        ("[slots]\na-data = 2\n", "default: slots.a-verity must be set"),
        ("no toml", "m.toml:1: "),
    ] {
        let error = checked(text).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_credential_wins_over_the_nodes_file_and_sets_what_a_machine_may_say() {
    let folder = tempfile::tempdir().unwrap();
    let (node, credential) = (folder.path().join("node.toml"), folder.path().join(CREDENTIAL));
    std::fs::write(&node, "[node]\nname = \"file\"\n[boot]\ntries = 2\n").unwrap();
    let sources = Sources { files: vec![node.clone()], credential: Some(credential.clone()), ..Sources::default() };
    let name = |found: &Found| found.get("node.name").cloned().unwrap();
    let text = |text: &str| Value::Text(text.to_owned());
    assert_eq!(name(&read(&sources).unwrap()), (text("file"), Origin::File(node, 2)), "none came");
    std::fs::write(&credential, "[node]\nname = \"machine\"\n").unwrap();
    assert_eq!(name(&read(&sources).unwrap()), (text("machine"), Origin::File(credential.clone(), 2)));
    let environment = vec![("BASCULE_NODE_NAME".into(), "variable".into())];
    let (value, _) = name(&read(&Sources { environment, ..sources.clone() }).unwrap());
    assert_eq!(value, text("variable"));
    for (key, value) in [("trial.deadline", "\"1h\""), ("repository.trust-root", "\"/x\""), ("boot.tries", "1")] {
        let (section, name_of_key) = key.split_once('.').unwrap();
        let broken = format!("[node]\nname = \"machine\"\n[{section}]\n{name_of_key} = {value}\n");
        std::fs::write(&credential, broken).unwrap();
        let error = read(&sources).unwrap_err().to_string();
        let expected = format!("{CREDENTIAL}:4: {key} can't come as a credential: set it in the OS image");
        assert!(error.ends_with(&expected), "{error}");
        let left = read_what_can_be_used(&sources);
        assert_eq!(name(&left).0, text("machine"), "the rest of it says where to report");
        assert!(left.get(key).is_none_or(|(_, origin)| *origin != Origin::File(credential.clone(), 4)));
    }
    std::fs::write(&credential, vec![b'#'; (256 << 10) + 1]).unwrap();
    assert!(matches!(read(&sources), Err(SettingsError::Read { path, .. }) if path == credential));
}

#[test]
fn the_credential_is_where_systemd_says_or_where_the_agents_unit_has_it() {
    let place = |variables: &[(&str, &str)]| {
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Sources::usual(None, environment).credential.unwrap()
    };
    let here = [("CREDENTIALS_DIRECTORY", "/run/credentials/other.service")];
    assert_eq!(place(&here), PathBuf::from("/run/credentials/other.service/bascule.agent.toml"));
    assert_eq!(place(&[]), PathBuf::from("/run/credentials/bascule-agent.service/bascule.agent.toml"));
    assert_eq!(Sources::usual(Some("/x".into()), Vec::new()).credential, None, "only what is named is read");
}

#[test]
fn every_key_that_is_kept_is_one() {
    let kept = KEYS.iter().filter(|key| !comes_with_the_machine(key.name)).count();
    assert_eq!(kept, 15);
    assert!(comes_with_the_machine("node.name") && comes_with_the_machine("repository.proxy"));
}

#[test]
fn a_file_that_is_not_there_or_too_long_is_no_file_for_a_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    assert!(matches!(check(&path), Err(SettingsError::Read { .. })));
    std::fs::write(&path, vec![b'#'; (256 << 10) + 1]).unwrap();
    assert!(matches!(check(&path), Err(SettingsError::Read { .. })));
}
