//! Pure: the words of a command line → what may follow, by the command line's own definition.

use clap::{Arg, ArgAction, Command};

/// A word, and what it is for; empty for names of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) word: String,
    pub(crate) help: String,
}

/// What may stand at the end of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One of these.
    Words(Vec<Candidate>),
    /// The name of an IdTokenRequest.
    Requests,
    /// The name of a namespace.
    Namespaces,
    /// A file.
    Files,
    /// Something that cannot be known.
    Anything,
}

/// A completion: `before` stands before each candidate in the last word, such as `--output=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) wanted: Wanted,
    pub(crate) before: String,
    /// What is typed of the candidate.
    pub(crate) typed: String,
}

/// What may follow the `words` behind the program's name, of which the last is unfinished.
pub(crate) fn complete(root: &Command, words: &[String]) -> Completion {
    let (typed, rest) = match words.split_last() {
        Some((last, rest)) => (last.as_str(), rest),
        None => ("", words),
    };
    let found = |wanted, before: &str, typed: &str| Completion {
        wanted,
        before: before.to_owned(),
        typed: typed.to_owned(),
    };
    let Some(at) = rest.iter().position(|word| !word.starts_with('-')) else {
        let words = match typed.starts_with('-') {
            true => flags(root),
            false => subcommands(root),
        };
        return found(Wanted::Words(matching(words, typed)), "", typed);
    };
    let Some(command) = root.find_subcommand(&rest[at]) else {
        return found(Wanted::Anything, "", typed);
    };
    let state = Position::after(command, &rest[at + 1..]);
    if let Some(arg) = state.pending {
        return found(values(arg, typed), "", typed);
    }
    if typed.starts_with('-') && !state.only_positionals {
        return match typed.split_once('=') {
            Some((name, value)) => {
                let arg = by_flag(command, name);
                let wanted = arg.map_or(Wanted::Anything, |arg| values(arg, value));
                found(wanted, &format!("{name}="), value)
            }
            None => found(Wanted::Words(matching(flags(command), typed)), "", typed),
        };
    }
    let arg = command.get_positionals().nth(state.positionals);
    found(arg.map_or(Wanted::Anything, |arg| values(arg, typed)), "", typed)
}

/// The names among `names` that begin as what is typed. Names that Kubernetes would not allow are left out: a shell reads them.
pub(crate) fn names(names: Vec<String>, typed: &str) -> Vec<Candidate> {
    let is_name = |name: &String| {
        let mut bytes = name.bytes();
        bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
    };
    let names = names.into_iter().filter(is_name).map(|word| Candidate {
        word,
        help: String::new(),
    });
    matching(names.collect(), typed)
}

/// The lines that cobra's completions print, which kubectl reads: words with their help, and at the end what the shell may add: 4 for
/// nothing, 0 for files.
pub(crate) fn lines(candidates: &[Candidate], before: &str, files: bool) -> String {
    let mut text = String::new();
    for Candidate { word, help } in candidates {
        text.push_str(before);
        text.push_str(word);
        if !help.is_empty() {
            text.push('\t');
            text.push_str(help);
        }
        text.push('\n');
    }
    text + if files { ":0\n" } else { ":4\n" }
}

/// The flags of the cluster among `words`, with their values, for the reader of names.
pub(crate) fn cluster_flags(cluster: &Command, words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter().take(words.len().saturating_sub(1));
    while let Some(word) = words.next() {
        let name = word.split('=').next().unwrap_or_default();
        let Some(arg) = by_flag(cluster, name) else {
            continue;
        };
        kept.push(word.clone());
        if takes_next(arg, word) {
            match words.next() {
                Some(value) => kept.push(value.clone()),
                None => drop(kept.pop()),
            }
        }
    }
    kept
}

/// How far a command line is.
#[derive(Default)]
struct Position<'a> {
    /// The flag whose value comes next.
    pending: Option<&'a Arg>,
    positionals: usize,
    /// After `--`.
    only_positionals: bool,
}

impl<'a> Position<'a> {
    fn after(command: &'a Command, words: &[String]) -> Self {
        let mut state = Self::default();
        for word in words {
            if state.pending.take().is_some() {
            } else if !state.only_positionals && word == "--" {
                state.only_positionals = true;
            } else if !state.only_positionals && word.len() > 1 && word.starts_with('-') {
                let name = word.split('=').next().unwrap_or_default();
                state.pending = by_flag(command, name).filter(|arg| takes_next(arg, word));
            } else {
                state.positionals += 1;
            }
        }
        state
    }
}

/// Whether the value of the flag is the word after `word`.
fn takes_next(arg: &Arg, word: &str) -> bool {
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let is_short_with_value = !word.starts_with("--") && word.len() > 2;
    takes_value && !arg.is_require_equals_set() && !word.contains('=') && !is_short_with_value
}

fn by_flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => {
            let short = name.strip_prefix('-').and_then(|name| name.chars().next());
            short.is_some() && arg.get_short() == short
        }
    })
}

fn subcommands(root: &Command) -> Vec<Candidate> {
    let visible = root.get_subcommands().filter(|command| !command.is_hide_set());
    visible
        .map(|command| candidate(command.get_name(), command.get_about()))
        .collect()
}

fn flags(command: &Command) -> Vec<Candidate> {
    let named = |arg: &Arg| Some(candidate(&format!("--{}", arg.get_long()?), arg.get_help()));
    let mut flags: Vec<Candidate> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(named)
        .collect();
    // clap adds it when it parses.
    if !flags.iter().any(|flag| flag.word == "--help") {
        flags.push(candidate("--help", None));
    }
    flags
}

fn values(arg: &Arg, typed: &str) -> Wanted {
    let possible = arg.get_possible_values();
    if !possible.is_empty() && !arg.is_hide_possible_values_set() {
        let words = possible
            .iter()
            .map(|value| candidate(value.get_name(), value.get_help()));
        return Wanted::Words(matching(words.collect(), typed));
    }
    match arg.get_id().as_str() {
        "name" => Wanted::Requests,
        "namespace" | "operator_namespace" => Wanted::Namespaces,
        _ if arg
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name == "FILE")) =>
        {
            Wanted::Files
        }
        _ => Wanted::Anything,
    }
}

/// With the first sentence of the help.
fn candidate(word: &str, help: Option<&clap::builder::StyledStr>) -> Candidate {
    let help = help.map(ToString::to_string).unwrap_or_default();
    let line = help.lines().next().unwrap_or_default();
    Candidate {
        word: word.to_owned(),
        help: line.split(" [").next().unwrap_or_default().to_owned(),
    }
}

fn matching(candidates: Vec<Candidate>, typed: &str) -> Vec<Candidate> {
    let begins = |candidate: &Candidate| candidate.word.starts_with(typed);
    candidates.into_iter().filter(begins).collect()
}

#[cfg(test)]
mod tests {
    use clap::{Args, Parser, ValueEnum};

    use super::*;
    use crate::args::ClusterArgs;

    #[derive(Clone, Copy, ValueEnum)]
    enum Format {
        /// For people
        Text,
        Json,
    }

    #[derive(Args)]
    struct Show {
        name: String,
        url: Option<String>,
        /// Output format [default: text]
        #[arg(short, long)]
        output: Option<Format>,
        #[arg(long, value_name = "FILE")]
        grants_file: Option<String>,
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    #[derive(Parser)]
    #[command(disable_help_subcommand = true)]
    enum Root {
        /// Show it
        Show(Box<Show>),
        #[command(hide = true)]
        Hidden,
    }

    fn at(line: &str) -> Completion {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut root = <Root as clap::CommandFactory>::command();
        root.build();
        complete(&root, &words)
    }

    fn words(line: &str) -> Vec<String> {
        match at(line).wanted {
            Wanted::Words(words) => words.into_iter().map(|word| word.word).collect(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn each_place_has_its_candidates() {
        assert_eq!(words(""), ["show"]);
        assert_eq!(words("s"), ["show"]);
        assert_eq!(words("x"), Vec::<String>::new());
        assert_eq!(words("show --out"), ["--output"]);
        assert!(words("show --").contains(&"--namespace".to_owned()));
        assert_eq!(words("show -o "), ["text", "json"]);
        assert_eq!(words("show a --output j"), ["json"]);
        let joined = at("show --output=j");
        assert_eq!(
            (joined.before.as_str(), joined.typed.as_str()),
            ("--output=", "j")
        );
        assert_eq!(words("show --output=j"), ["json"]);
        for (line, wanted) in [
            ("show ", Wanted::Requests),
            ("show bill", Wanted::Requests),
            ("show --all ", Wanted::Requests),
            ("show -n shop ", Wanted::Requests),
            ("show -nshop ", Wanted::Requests),
            ("show --namespace=shop ", Wanted::Requests),
            ("show --insecure-skip-tls-verify ", Wanted::Requests),
            ("show -- ", Wanted::Requests),
            ("show -- -", Wanted::Requests),
            ("show -n ", Wanted::Namespaces),
            ("show --namespace=s", Wanted::Namespaces),
            ("show --grants-file ", Wanted::Files),
            ("show a ", Wanted::Anything),
            ("show a b ", Wanted::Anything),
            ("show --server ", Wanted::Anything),
            ("show --unknown=", Wanted::Anything),
            ("unknown ", Wanted::Anything),
        ] {
            assert_eq!(at(line).wanted, wanted, "{line}");
        }
    }

    #[test]
    fn lines_are_those_of_cobra() {
        let Wanted::Words(found) = at("show --output=").wanted else {
            panic!("no words")
        };
        assert_eq!(
            lines(&found, "--output=", false),
            "--output=text\tFor people\n--output=json\n:4\n"
        );
        assert_eq!(lines(&[], "", true), ":0\n");
        let hostile = ["billing", "b\u{1b}[2J", "$(reboot)", "b c", "other"].map(str::to_owned);
        let found = names(hostile.into(), "b");
        assert_eq!(lines(&found, "", false), "billing\n:4\n");
    }

    #[test]
    fn names_are_read_from_the_cluster_of_the_flags() {
        let cluster = ClusterArgs::augment_args(Command::new("x"));
        let kept = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            cluster_flags(&cluster, &words).join(" ")
        };
        assert_eq!(
            kept("explain -o json --context=prod -n shop --as jane --all bill"),
            "--context=prod -n shop --as jane"
        );
        // The last word is unfinished.
        assert_eq!(kept("explain --context prod -n s"), "--context prod");
        assert_eq!(kept("explain -n shop --context"), "-n shop");
    }
}
