//! Whether what is bound to a key opens under a boot image: what that key signed against what the image is measured as.

use std::collections::BTreeSet;

use bascule_image::uki::{MAX_PCR_SECTION, PhasePath, ReadUkiError, Uki, UkiError};
use bascule_release::policy::{BANK, REGISTER, SignedPolicies, SignedPolicy, fingerprint};

use super::{Finding, OTHER_POLICY, OTHER_POLICY_KEY, UNJUDGED_POLICY};
use crate::release::build::pcr::public_key;
use crate::release::rsa::verifies;

/// A boot image, whose OS may enter phases of its own beside systemd's.
///
/// # Errors
/// The sections can't be read.
#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
pub(crate) fn policy(file: &Vec<u8>, further: &[PhasePath]) -> anyhow::Result<Vec<Finding>> {
    // What is no boot image is said elsewhere.
    let Ok(uki) = Uki::open(file) else { return Ok(Vec::new()) };
    let section = |name: &'static str| match uki.section(name, MAX_PCR_SECTION) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ReadUkiError::NotUki(UkiError::Section { found: 0, .. })) => Ok(None),
        Err(error) => Err(error),
    };
    let key = section(".pcrpkey")?;
    let Some(signed) = section(".pcrsig")? else {
        let finding = key.map(|_| UNJUDGED_POLICY.found("the UKI has .pcrpkey and no .pcrsig: nothing opens under it"));
        return Ok(finding.into_iter().collect());
    };
    // Some builders pad a section to its end.
    let text = signed.rsplit(|byte| *byte != 0).next().map_or(0, <[u8]>::len);
    let text = signed.get(..signed.len() - text).unwrap_or_default();
    let Ok(policies) = serde_json::from_slice::<SignedPolicies>(text) else {
        return Ok(vec![OTHER_POLICY.found("the UKI's .pcrsig holds no signatures as systemd-measure writes them")]);
    };
    let of_bank = policies.0.get(BANK).into_iter().flatten();
    let entries: Vec<&SignedPolicy> = of_bank.filter(|entry| entry.pcrs == [REGISTER]).collect();
    if entries.is_empty() {
        let text = format!("the UKI's .pcrsig says nothing of PCR {REGISTER} in the bank {BANK}");
        return Ok(vec![UNJUDGED_POLICY.found(text)]);
    }
    let mut findings = Vec::new();
    match uki.pcr11() {
        Ok(pcr11) => {
            let possible = PhasePath::possible();
            let paths = possible.iter().chain(further);
            let reached: BTreeSet<String> = paths.map(|path| pcr11.policy(path).to_string()).collect();
            let others = entries.iter().filter(|entry| !reached.contains(&entry.pol.to_ascii_lowercase())).count();
            if others > 0 {
                let all = entries.len();
                let text = format!("{others} of {all} signatures in the UKI's .pcrsig are for another image");
                findings.push(OTHER_POLICY.found(text));
            }
        }
        Err(error) => {
            findings.push(UNJUDGED_POLICY.found(format!("whether the UKI's .pcrsig is for it is not known: {error}")));
        }
    }
    findings.extend(match key {
        Some(pem) => judge_key(&pem, &entries),
        None => Some(UNJUDGED_POLICY.found("the UKI has .pcrsig and no .pcrpkey: by which key it is can't be said")),
    });
    Ok(findings)
}

/// Whether the key that machines bind to signed, and well.
fn judge_key(pem: &[u8], entries: &[&SignedPolicy]) -> Option<Finding> {
    let public = match public_key(pem) {
        Ok(public) => public,
        Err(error) => return Some(UNJUDGED_POLICY.found(format!("the key in the UKI's .pcrpkey: {error:#}"))),
    };
    let name = fingerprint(&public);
    let own: Vec<_> = entries.iter().filter(|entry| entry.pkfp.eq_ignore_ascii_case(&name)).collect();
    if own.is_empty() {
        return Some(OTHER_POLICY_KEY.found("no signature in the UKI's .pcrsig is by the key in its .pcrpkey"));
    }
    let broken = own.iter().filter(|entry| !holds(&public, entry)).count();
    let text = format!("{broken} of {} signatures by the key in the UKI's .pcrpkey do not hold", own.len());
    (broken > 0).then(|| OTHER_POLICY_KEY.found(text))
}

fn holds(public: &[u8], entry: &SignedPolicy) -> bool {
    entry.bytes().is_some_and(|(policy, signature)| verifies(public, &policy, &signature))
}
