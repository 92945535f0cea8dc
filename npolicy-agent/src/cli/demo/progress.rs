//! Says on stderr what takes long: a moving line on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Does one step and says so.
pub(super) fn step<T>(text: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    show(text, ProgressBar::new_spinner(), "{spinner} {msg}", |_| work())
}

/// Does one step of `total` parts; `work` counts them on the bar.
pub(super) fn counted<T>(
    text: &str,
    total: usize,
    work: impl FnOnce(&ProgressBar) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    show(text, ProgressBar::new(total as u64), "{spinner} {msg} {bar:30} {pos}/{len}", work)
}

fn show<T>(
    text: &str,
    bar: ProgressBar,
    template: &str,
    work: impl FnOnce(&ProgressBar) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let is_terminal = io::stderr().is_terminal();
    if is_terminal {
        bar.set_style(ProgressStyle::with_template(template).expect("the template must be right"));
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
    } else {
        eprintln!("{text}");
    }
    let started = Instant::now();
    let done = work(&bar);
    bar.finish_and_clear();
    if is_terminal && done.is_ok() {
        eprintln!("{text}: {:.1} s", started.elapsed().as_secs_f32());
    }
    done
}
