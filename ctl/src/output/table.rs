//! Tables and lists of fields, aligned as kubectl aligns them.

/// Spaces between columns.
const GAP: usize = 3;

/// Aligns `rows` below `headers`. The last column is not padded, so that a long message does not widen other rows.
pub(crate) fn render<const N: usize>(headers: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headers.map(width);
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(cell));
        }
    }
    let mut out = String::new();
    line(&mut out, &widths, headers);
    for row in rows {
        line(&mut out, &widths, row.each_ref().map(String::as_str));
    }
    out
}

/// Aligns names and values, one pair a line.
pub(crate) fn fields(pairs: &[(&str, String)], indent: usize) -> String {
    let widest = pairs.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in pairs {
        let padding = widest - width(name) + 2;
        out.push_str(&format!("{:indent$}{name}:{:padding$}{value}\n", "", ""));
    }
    out
}

fn line<const N: usize>(out: &mut String, widths: &[usize; N], cells: [&str; N]) {
    let mut text = String::new();
    for (cell, widest) in cells.iter().zip(widths) {
        let padding = widest - width(cell) + GAP;
        text.push_str(&format!("{cell}{:padding$}", ""));
    }
    out.push_str(text.trim_end());
    out.push('\n');
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let text = render(
            ["TYPE", "S", "MESSAGE"],
            &[row(["Ready", "True", "fine"]), row(["Stalled", "", ""])],
        );
        assert_eq!(text, "TYPE      S      MESSAGE\nReady     True   fine\nStalled\n");
    }

    #[test]
    fn fields_are_aligned() {
        assert_eq!(
            fields(&[("aud", "x".into()), ("issuer", "y".into())], 2),
            "  aud:     x\n  issuer:  y\n"
        );
    }
}
