//! The blocks of a page that a shell reads.

/// A block of shell commands, or of values that the page's reader puts into `values.yaml`.
pub(super) struct Block {
    /// Page and line.
    pub(super) place: String,
    /// The heading that it is under.
    pub(super) heading: String,
    /// What a shell reads: of a block with output, the commands after `$ `.
    pub(super) text: String,
    /// Whether no test runs it: it has the output of its commands too (`console`), or needs what no test has (`bash`).
    pub(super) is_shown: bool,
    /// Whether it is a `values.yaml`.
    pub(super) is_values: bool,
}

/// The blocks of a page in their order.
pub(super) fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut heading = String::new();
    let mut fence: Option<(String, usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let mark = line.trim_start().strip_prefix("```");
        match (&mut fence, mark) {
            (None, Some(language)) => fence = Some((language.to_owned(), index + 2, String::new())),
            (None, None) => {
                if let Some(text) = line.strip_prefix('#') {
                    heading = text.trim_start_matches('#').trim().to_owned();
                }
            }
            (Some((_, _, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (Some(_), Some(_)) => {
                let (language, line, block) = fence.take().unwrap();
                let is_values = language == "yaml" && block.starts_with("# values.yaml\n");
                let has_output = language == "console";
                let is_shown = has_output || language == "bash";
                if !is_values && !is_shown && language != "sh" {
                    continue;
                }
                found.push(Block {
                    place: format!("{page}:{line}"),
                    heading: heading.clone(),
                    text: if has_output { commands(&block) } else { block },
                    is_shown,
                    is_values,
                });
            }
        }
    }
    found
}

/// The lines after a prompt, with those that continue them.
fn commands(block: &str) -> String {
    let mut found = String::new();
    let mut continued = false;
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ").or(continued.then_some(line)) {
            continued = command.ends_with('\\');
            found.push_str(command);
            found.push('\n');
        }
    }
    found
}

#[test]
fn blocks_of_a_page_are_read() {
    let page = "# A\n```sh\na\n```\n## B `c`\n```console\n$ b \\\n  c\noutput\n```\n```bash\ne\n```\n```yaml\n# values.yaml\nd: 1\n```\n```yaml\nno: 1\n```\n";
    let read: Vec<_> = blocks("p", page)
        .into_iter()
        .map(|block| {
            (
                block.place,
                block.heading,
                block.text,
                block.is_shown,
                block.is_values,
            )
        })
        .collect();
    let block = |place: &str, heading: &str, text: &str, is_shown, is_values| {
        (
            place.to_owned(),
            heading.to_owned(),
            text.to_owned(),
            is_shown,
            is_values,
        )
    };
    assert_eq!(
        read,
        [
            block("p:3", "A", "a\n", false, false),
            block("p:7", "B `c`", "b \\\n  c\n", true, false),
            block("p:12", "B `c`", "e\n", true, false),
            block("p:15", "B `c`", "# values.yaml\nd: 1\n", false, true)
        ]
    );
}
