//! A picture of a terminal in which the demo ran.

/// The first heading of what is shown; before it are builds and starts.
const FROM: &str = "A request without a grant";
/// Characters of a line that have room.
const COLUMNS: usize = 116;
/// Sizes in pixels: of a character of the font, of a line, of the margin.
const CHARACTER: f64 = 7.8;
const LINE: usize = 19;
const MARGIN: usize = 18;

/// The lines that tell the story: headings, what was checked, commands, and the tables that they print.
fn chosen(lines: &[String]) -> Vec<&str> {
    let from = lines.iter().position(|line| line == FROM).unwrap_or(0);
    let mut table = false;
    let story = lines[from..].iter().map(String::as_str).filter(|line| {
        if line.is_empty() || line.starts_with('…') {
            return false;
        }
        if let Some(command) = line.strip_prefix("    $ ") {
            table = command.starts_with("kubectl get");
            return table || command.contains(" apply ");
        }
        !line.starts_with("    ") || table
    });
    story.collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The text of an SVG.
pub(super) fn draw(lines: &[String]) -> String {
    let is_heading = |line: &str| !line.starts_with([' ', '✓']);
    let mut shown = vec!["$ cargo xtask demo"];
    for line in chosen(lines) {
        if is_heading(line) {
            shown.push("");
        }
        shown.push(line);
    }
    let width = (COLUMNS as f64 * CHARACTER) as usize + 2 * MARGIN;
    let height = shown.len() * LINE + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\">\n\
         <title>cargo xtask demo</title>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for (index, line) in shown.into_iter().enumerate() {
        let text: String = match line.chars().count() > COLUMNS {
            true => line.chars().take(COLUMNS - 1).chain(['…']).collect(),
            false => line.to_owned(),
        };
        let (colour, weight) = match line {
            _ if index == 0 => ("#8b949e", "normal"),
            line if line.starts_with("    $ ") => ("#8b949e", "normal"),
            line if is_heading(line) => ("#f0f6fc", "bold"),
            line if line.starts_with('✓') => ("#3fb950", "normal"),
            _ => ("#c9d1d9", "normal"),
        };
        let y = MARGIN + (index + 1) * LINE - 5;
        svg.push_str(&format!(
            "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"{colour}\" font-weight=\"{weight}\" xml:space=\"preserve\">{}</text>\n",
            escape(&text)
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_is_drawn_and_nothing_else() {
        let lines = [
            "Building",
            "✓ built (1.0 s)",
            "",
            FROM,
            "… waits (15 s)",
            "    $ kubectl apply -f a",
            "    a created",
            "",
            "    $ kubectl get idtr -n shop",
            "    NAME   <READY>",
            "    $ kubectl describe secret billing",
            "    token:  900 bytes",
            "✓ done & dusted",
        ];
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(
            chosen(&lines),
            [
                FROM,
                "    $ kubectl apply -f a",
                "    $ kubectl get idtr -n shop",
                "    NAME   <READY>",
                "✓ done & dusted"
            ]
        );
        let svg = draw(&lines);
        assert!(
            svg.contains(">    NAME   &lt;READY&gt;</text>") && svg.contains(">✓ done &amp; dusted</text>")
        );
        // The command, five lines, and one that is empty.
        assert_eq!(svg.matches("<text ").count(), 7);
    }
}
