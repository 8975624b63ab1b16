//! The blocks of a page that a shell reads.

/// The languages of fences whose commands are run.
const SHELL: [&str; 3] = ["sh", "bash", "console"];
/// All others that pages have. No test looks for commands in these.
const OTHERS: [&str; 8] = ["cel", "hcl", "json", "mermaid", "python", "rust", "text", "yaml"];

/// A block of shell commands, or of values that the page's reader puts into `values.yaml`.
pub(super) struct Block {
    /// Page and line.
    pub(super) place: String,
    /// The heading that it is under.
    pub(super) heading: String,
    /// The language after the fence.
    pub(super) language: String,
    /// What a shell reads: of a block with output, the commands after `$ `.
    pub(super) text: String,
    /// The commands of a block with output (`console`), each with its output.
    pub(super) shown: Vec<(String, String)>,
}

impl Block {
    /// Whether it is a `values.yaml`.
    pub(super) fn is_values(&self) -> bool {
        self.language == "yaml"
    }
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
                if !is_values && !SHELL.contains(&language.as_str()) {
                    continue;
                }
                let shown = match language.as_str() {
                    "console" => session(&block),
                    _ => Vec::new(),
                };
                let commands: String = shown.iter().map(|(command, _)| command.as_str()).collect();
                found.push(Block {
                    place: format!("{page}:{line}"),
                    heading: heading.clone(),
                    text: if language == "console" { commands } else { block },
                    language,
                    shown,
                });
            }
        }
    }
    found
}

/// The commands after a prompt, with the lines that continue them; and what is between them.
fn session(block: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut continued = false;
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            continued = command.ends_with('\\');
            found.push((format!("{command}\n"), String::new()));
        } else if let Some((command, output)) = found.last_mut() {
            let part = if continued { command } else { output };
            part.push_str(line);
            part.push('\n');
            continued &= line.ends_with('\\');
        }
    }
    found
}

/// What is wrong with the fences of a page: in a language that is not known, no test finds commands.
pub(super) fn unknown_fences(page: &str, text: &str) -> Vec<String> {
    let mut is_open = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            is_open = !is_open;
            let is_known = SHELL.contains(&language) || OTHERS.contains(&language);
            if is_open && !is_known {
                found.push(format!(
                    "{page}:{}: a fence of {language:?}: commands are fenced as one of {SHELL:?}",
                    index + 1
                ));
            }
        }
    }
    found
}

#[test]
fn blocks_of_a_page_are_read() {
    let page = "# A\n```sh\na\n```\n## B `c`\n```console\n$ b \\\n  c\noutput\nmore \\\n\n$ f\n```\n```bash\ne\n```\n\
                ```yaml\n# values.yaml\nd: 1\n```\n```yaml\nno: 1\n```\n";
    let read: Vec<_> = blocks("p", page)
        .into_iter()
        .map(|block| [block.place, block.heading, block.language, block.text])
        .collect();
    assert_eq!(
        read,
        [
            ["p:3", "A", "sh", "a\n"],
            ["p:7", "B `c`", "console", "b \\\n  c\nf\n"],
            ["p:15", "B `c`", "bash", "e\n"],
            ["p:18", "B `c`", "yaml", "# values.yaml\nd: 1\n"],
        ]
    );
    let shown = &blocks("p", page)[1].shown;
    let pair = |command: &str, output: &str| (command.to_owned(), output.to_owned());
    assert_eq!(
        *shown,
        [pair("b \\\n  c\n", "output\nmore \\\n\n"), pair("f\n", "")]
    );
}

#[test]
fn a_fence_of_another_language_is_found() {
    let page = "```sh\na\n```\n- b\n  ```shell\n  c\n  ```\n```\nd\n```\n```yaml\ne\n```\n";
    let found = unknown_fences("p", page);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("p:5: a fence of \"shell\"") && found[1].starts_with("p:8: "));
}
