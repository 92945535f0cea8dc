//! Colour, where a terminal wants it; `anstream` takes it away elsewhere and under NO_COLOR.

use anstyle::{AnsiColor, Style};

/// Words of an accepting verdict.
pub(super) fn accepted(text: &str) -> String {
    paint(AnsiColor::Green, text)
}

/// Words of a denying verdict.
pub(super) fn denied(text: &str) -> String {
    paint(AnsiColor::Red, text)
}

fn paint(color: AnsiColor, text: &str) -> String {
    let style = Style::new().bold().fg_color(Some(color.into()));
    format!("{style}{text}{style:#}")
}
