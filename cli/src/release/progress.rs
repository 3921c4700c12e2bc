//! Progress bars for long steps. None when stderr is no terminal.

use bascule_image::work::{Progress, Watch};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that counts bytes.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Starts a bar; `what` stands before it.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let template =
            "{prefix:24} {wide_bar:.cyan/blue} {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Self(bar)
    }

    /// Moves the bar.
    pub(crate) fn at(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Takes it away.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }

    /// Runs `work` with a watch that moves the bar.
    pub(crate) fn during<T>(&self, work: impl FnOnce(&Watch<'_>) -> T) -> T {
        let total = self.0.length().unwrap_or(0);
        let moved = |progress: Progress| self.0.set_position(progress.done);
        let result = work(&Watch::new(total, Some(&moved), None));
        self.0.finish_and_clear();
        result
    }
}
