//! Rust sources without their comments and strings.

/// `source` with everything in comments, strings and characters replaced by spaces; lines stay where they are.
pub(super) fn only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| string(rest, &code)).or_else(|| character(rest));
        let (length, keep) = skipped.map_or((first.len_utf8(), true), |length| (length, false));
        let (taken, after) = rest.split_at(length);
        code.extend(taken.chars().map(|c| if keep || c == '\n' { c } else { ' ' }));
        rest = after;
    }
    code
}

/// Length of the comment that `rest` begins with; block comments nest.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_u32, 0);
    while let Some(next) = rest.get(at..).filter(|next| !next.is_empty()) {
        let (step, change) = match next.as_bytes() {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (next.chars().next().map_or(1, char::len_utf8), 0),
        };
        at += step;
        depth = depth.saturating_add_signed(change);
        if depth == 0 {
            return Some(at);
        }
    }
    Some(rest.len())
}

/// Length of the string that `rest` begins with, raw or not; `before` tells a prefix from the end of a name.
fn string(rest: &str, before: &str) -> Option<usize> {
    if let Some(body) = rest.strip_prefix('"') {
        let mut escaped = false;
        let end = body.char_indices().find(|&(_, c)| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return Some(end.map_or(rest.len(), |(at, _)| at + 2));
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    if before.ends_with(is_name) {
        return None;
    }
    let raw = ["br", "cr", "r"].into_iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    let body = raw[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let opening = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |at| opening + at + end.len()))
}

/// Length of the character that `rest` begins with; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    if let Some(escape) = body.strip_prefix('\\') {
        let skipped = escape.chars().next()?.len_utf8();
        return escape[skipped..].find('\'').map(|end| 2 + skipped + end + 1);
    }
    let one = body.chars().next()?.len_utf8();
    body[one..].starts_with('\'').then_some(1 + one + 1)
}

#[cfg(test)]
mod tests {
    use super::only;

    #[track_caller]
    fn check(source: &str, code: &str) {
        assert_eq!(only(source).split_whitespace().collect::<Vec<_>>().join(" "), code);
        assert_eq!(only(source).lines().count(), source.lines().count());
    }

    #[test]
    fn comments_go() {
        check("a // b\nc /* d /* e */ f */ g /* h", "a c g");
    }

    #[test]
    fn strings_go_with_their_escapes() {
        check(r#"a("b\"c\\", d)"#, "a( , d)");
    }

    #[test]
    fn raw_strings_end_where_their_hashes_say() {
        check(r##"a(r#"b " c"#, br"\", d)"##, "a( , , d)");
    }

    #[test]
    fn a_name_that_ends_in_r_is_no_prefix() {
        check("for\"a\"", "for");
    }

    #[test]
    fn characters_go_and_lifetimes_stay() {
        check(r"f::<'a>('b', '\'', '\u{1f}', b'\\', 'c')", "f::<'a>( , , , b , )");
    }
}
