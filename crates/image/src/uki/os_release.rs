//! os-release(5), as a UKI carries it and as the running system has it.

/// The field by which an OS image says what it makes of the machine's state. os-release(5) leaves names with a prefix of their own
/// to whoever needs them, and has readers pass over what they do not know.
pub const STATE_VERSION: &str = "BASCULE_STATE_VERSION";

/// The assignments of an os-release file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    text: String,
    fields: Vec<(String, String)>,
}

impl OsRelease {
    /// Reads the assignments that are not empty. The format is shell-like: quotes are optional, a `#` begins a comment, and a
    /// line that is no assignment is passed over, as every reader of os-release does.
    pub fn parse(text: &str) -> Self {
        let assignment = |line: &str| {
            let (key, value) = line.trim().split_once('=')?;
            let value = value.trim();
            let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            let value = bare.unwrap_or(value);
            (!value.is_empty() && !key.starts_with('#')).then(|| (key.to_owned(), value.to_owned()))
        };
        Self { text: text.to_owned(), fields: text.split(['\n', '\r']).filter_map(assignment).collect() }
    }

    /// As it was read.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The value of the first of `names` that is set.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        let value = |name: &&str| self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        names.iter().find_map(value)
    }

    /// [`STATE_VERSION`]. `None` where it is not said, which counts as 0.
    ///
    /// # Errors
    /// What stands there, if it is no number from 1 on.
    pub fn state_version(&self) -> Result<Option<u32>, &str> {
        let Some(text) = self.first(&[STATE_VERSION]) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| *number > 0 && text.bytes().all(|byte| byte.is_ascii_digit()));
        number.map(Some).ok_or(text)
    }

    /// What a boot loader sorts by first: IMAGE_ID, else ID (systemd, src/boot/boot.c, `boot_entry_add_type2`).
    pub fn sort_key(&self) -> Option<&str> {
        self.first(&["IMAGE_ID", "ID"])
    }

    /// What a boot loader sorts by next: IMAGE_VERSION, VERSION, VERSION_ID, BUILD_ID (same place).
    pub fn version(&self) -> Option<&str> {
        self.first(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"])
    }

    /// What a boot loader shows: PRETTY_NAME, IMAGE_ID, NAME, ID (same place). It passes over an image without.
    pub fn title(&self) -> Option<&str> {
        self.first(&["PRETTY_NAME", "IMAGE_ID", "NAME", "ID"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_taken_off_and_comments_skipped() {
        let release = OsRelease::parse("# c\n#ID=x\nID=acme\nNAME=\"Acme OS\"\nEMPTY=\nVERSION_ID='1.0'\nnonsense\n");
        assert_eq!(release.first(&["EMPTY", "NAME"]), Some("Acme OS"));
        assert_eq!(
            (release.sort_key(), release.version(), release.title()),
            (Some("acme"), Some("1.0"), Some("Acme OS"))
        );
        let state = |text: &str| OsRelease::parse(text).state_version().map_err(str::to_owned);
        assert_eq!((state("ID=a"), state("BASCULE_STATE_VERSION=\"3\"")), (Ok(None), Ok(Some(3))));
        for wrong in ["0", "+1", "v2", "4294967296"] {
            assert_eq!(state(&format!("BASCULE_STATE_VERSION={wrong}")), Err(wrong.to_owned()));
        }
        let two = OsRelease::parse("VERSION_ID=1\nVERSION=2\nIMAGE_VERSION=3\nIMAGE_ID=i\nID=x");
        assert_eq!((two.sort_key(), two.version(), two.title()), (Some("i"), Some("3"), Some("i")));
    }
}
