use super::*;

#[test]
fn a_generated_key_reads_back_and_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    for (algorithm, name) in [(Algorithm::Ed25519, "root-1"), (Algorithm::EcdsaP256, "root-2")] {
        let stem = folder.path().join(name);
        let public = generate_with(algorithm, &stem).unwrap();
        let private = stem.with_extension("pem");
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        let key = SigningKey::read(&private).unwrap();
        assert_eq!(*key.public(), public);
        assert_eq!(PublicKey::read(&stem.with_extension("pub.json")).unwrap(), public);
        assert_eq!(PublicKey::read(&private).unwrap(), public);
        assert_eq!(public.name(), Some(name));
        assert!(!key.was_used());
        let signature = key.sign(b"message").unwrap();
        assert!(
            key.was_used()
                && public.verifies(b"message", &signature.sig)
                && !public.verifies(b"massage", &signature.sig)
        );
        assert!(matches!(generate(&stem), Err(PublishError::File { .. })), "an existing key is never overwritten");
    }
}

#[test]
fn a_half_that_is_in_the_way_leaves_no_other_half() {
    let folder = tempfile::tempdir().unwrap();
    let stem = folder.path().join("key");
    std::fs::write(stem.with_extension("pub.json"), "in the way").unwrap();
    assert!(generate(&stem).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    std::fs::remove_file(stem.with_extension("pub.json")).unwrap();
    generate(&stem).unwrap();
}

#[test]
fn what_is_no_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    for text in [
        "",
        "{}",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "{\"keytype\":\"x\"}",
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(PublicKey::read(&path), Err(PublishError::Key { .. })), "{text}");
        assert!(matches!(SigningKey::read(&path), Err(PublishError::Key { .. })), "{text}");
    }
}

#[test]
fn a_program_signs_and_is_believed_only_when_its_signature_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let stem = folder.path().join("kms");
    let public = generate_with(Algorithm::EcdsaP256, &stem).unwrap();
    let openssl = format!("openssl dgst -sha256 -sign {}", stem.with_extension("pem").display());
    let key = SigningKey::program(public.clone(), &openssl).unwrap();
    let signature = key.sign(b"message").unwrap();
    assert!(public.verifies(b"message", &signature.sig));
    for (command, reason) in [
        ("false", "exit status"),
        ("true", "wrote nothing"),
        ("echo AAAA", "no signature of key"),
        ("./not-there", "can't be started"),
    ] {
        let error = SigningKey::program(public.clone(), command).unwrap().sign(b"message").unwrap_err();
        assert_eq!(error.category(), "signer");
        assert!(error.to_string().contains(reason), "{command}: {error}");
    }
    assert!(SigningKey::program(public, "  ").is_err());
}
