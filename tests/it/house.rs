//! The rules of the house, held by reading the sources: who imports whom, where `unsafe` is, how
//! long things are, and whether the pages name what the program prints.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ringswitch::frame::DropReason;
use ringswitch::port::Totals;

use super::support::switch::Switch;

/// The modules, groups from left to right: imports go to the left only. It stands in `src/lib.rs`.
const ORDER: &str = "sys wire config api | mem table logs | frame | ring | stage port vhost_user | worker | control | main";
/// The modules that may be `unsafe`.
const UNSAFE: [&str; 3] = ["sys", "mem", "ring"];
/// The longest file, in lines of code: no blank lines, comments and tests.
const FILE_LINES: usize = 500;
/// The longest function, in lines of code.
const FUNCTION_LINES: usize = 60;

/// A source file of the switch.
struct Source {
    /// From the root of the repository.
    name: String,
    /// The first part of its path in the crate: `ring` for `src/ring/split.rs`.
    module: String,
    /// As it is.
    text: String,
    /// The same lines without comments and without what is in quotes.
    code: String,
    /// Whether all of it is tests.
    is_test: bool,
}

impl Source {
    fn read(path: &Path) -> Source {
        let text = fs::read_to_string(path).expect("a source file");
        let within = path.strip_prefix(root().join("src")).expect("below src");
        let first = within.components().next().expect("a name").as_os_str();
        let module = first.to_str().expect("a plain name").trim_end_matches(".rs");
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a plain name");
        Source {
            name: Path::new("src").join(within).display().to_string(),
            module: if module == "cli" { "main" } else { module }.to_owned(),
            code: without_comments(&text),
            // Those with other names are declared `#[cfg(test)]` where they belong to.
            is_test: stem.ends_with("tests")
                || within.components().any(|part| part.as_os_str() == "tests")
                || matches!(stem, "driver" | "reference" | "testing"),
            text,
        }
    }

    /// The code without the file's tests, which stand at its end.
    fn shipped(&self) -> &str {
        if self.is_test {
            return "";
        }
        self.code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `directory` that end in `.{extension}`.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let sources: Vec<_> =
        files(&root().join("src"), "rs").iter().map(|path| Source::read(path)).collect();
    assert!(sources.len() > 30, "only {} sources", sources.len());
    sources
}

/// Rust without comments and without the content of literals, line by line as it was.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '"' => literal(rest, 1, '"'),
            // A lifetime has no second quote behind its first character.
            '\'' if rest.starts_with("'\\") => literal(rest, 1, '\''),
            '\'' => match rest.chars().nth(2) {
                Some('\'') => rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at),
                _ => 0,
            },
            'r' if !ends_in_word(&code) && raw_string(rest).is_some() => {
                raw_string(rest).unwrap_or(0)
            }
            _ => 0,
        };
        if length == 0 {
            code.push(next);
            rest = &rest[next.len_utf8()..];
            continue;
        }
        let (skipped, after) = rest.split_at(length);
        code.push_str(if skipped.starts_with('/') { " " } else { "\"\"" });
        code.extend(skipped.chars().filter(|c| *c == '\n'));
        rest = after;
    }
    code
}

/// Length of a literal that begins `from` bytes in and ends with `end`, unless escaped.
fn literal(text: &str, from: usize, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(from) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == end => return at + end.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let body = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(2 + hashes + body.find(&end)? + end.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

/// Where `word` stands in `code` as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !ends_in_word(&code[..*at]) && !code[at + word.len()..].starts_with(is_word)
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The modules that stand behind `crate::`, in imports and in paths: `(offset, module)`.
fn imports<'a>(code: &'a str, root: &'a str) -> Vec<(usize, &'a str)> {
    let name = |text: &'a str| text.split(|c| !is_word(c)).next().unwrap_or_default();
    let mut found = Vec::new();
    for at in words(code, root) {
        let Some(rest) = code[at + root.len()..].strip_prefix("::") else { continue };
        let Some(group) = rest.strip_prefix('{') else {
            found.push((at, name(rest)));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (offset, c) in group.char_indices() {
            if begins && depth == 0 && is_word(c) {
                found.push((at, name(&group[offset..])));
            }
            begins = c == ',' || (begins && c.is_whitespace());
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found
}

/// The group of a module, counted from the left.
fn group(module: &str) -> Option<usize> {
    ORDER.split('|').position(|group| group.split_whitespace().any(|name| name == module))
}

#[test]
fn imports_go_to_the_left() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| source.module != "lib") {
        let own = group(&source.module)
            .unwrap_or_else(|| panic!("{} is of no module in {ORDER:?}", source.name));
        let main = group("main").expect("the last group");
        // The binary names the library from outside.
        let root = if own == main { "ringswitch" } else { "crate" };
        for (at, module) in imports(&source.code, root) {
            seen += 1;
            let left = group(module).is_some_and(|theirs| theirs < own);
            if !left && module != source.module {
                wrong.push(format!("{}:{}: {module}", source.name, line_of(&source.code, at)));
            }
        }
    }
    assert!(seen > 100, "only {seen} imports were found");
    assert!(wrong.is_empty(), "imports that don't go to the left of {ORDER:?}: {wrong:#?}");
}

#[test]
fn the_order_is_written_down() {
    let map = fs::read_to_string(root().join("src/lib.rs")).expect("the code map");
    assert!(map.contains(&format!("//! `{ORDER}`\n")), "src/lib.rs has another order: {ORDER}");
    for module in ORDER.split(['|', ' ']).filter(|name| !name.is_empty() && *name != "main") {
        assert!(map.contains(&format!("//! | [`{module}`] |")), "the code map lacks {module}");
        assert!(map.contains(&format!("pub mod {module};")), "there is no module {module}");
    }
}

#[test]
fn unsafe_code_is_in_the_low_modules_only() {
    let mut wrong = Vec::new();
    let mut blocks = 0;
    for source in sources() {
        let allowed = UNSAFE.contains(&source.module.as_str());
        for at in words(&source.code, "unsafe") {
            let line = line_of(&source.code, at);
            let rest = source.code[at + "unsafe".len()..].trim_start();
            // `unsafe fn` says what it demands in its documentation, as clippy holds.
            let explained = !rest.starts_with(['{', 'i']) || has_reason(&source.text, line);
            blocks += 1;
            if !allowed || !explained {
                wrong.push(format!("{}:{line}", source.name));
            }
        }
    }
    assert!(blocks > 30, "only {blocks} times unsafe");
    assert!(wrong.is_empty(), "unsafe in a wrong place or without SAFETY: {wrong:#?}");
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("the crate's root");
    let allowed: Vec<_> = lib.split("#[allow(unsafe_code)]\npub mod ").skip(1).collect();
    let allowed: BTreeSet<_> = allowed.iter().filter_map(|rest| rest.split(';').next()).collect();
    assert_eq!(allowed, UNSAFE.into(), "modules that lib.rs allows to be unsafe");
    assert_eq!(lib.matches("allow(unsafe_code)").count(), UNSAFE.len());
    assert!(lib.contains("#![deny(unsafe_code)]"));
}

/// Whether a comment with SAFETY stands right above this line, or above the statement it is in.
fn has_reason(text: &str, line: usize) -> bool {
    let above: Vec<_> = text.lines().take(line - 1).collect();
    let mut lines = above.iter().rev().map(|line| line.trim()).peekable();
    // The beginning of the statement: a line whose predecessor ends one, or is a comment.
    while lines.peek().is_some_and(|line| !line.starts_with("//") && !line.ends_with([';', '}'])) {
        lines.next();
    }
    lines.take_while(|line| line.starts_with("//")).any(|line| line.starts_with("// SAFETY:"))
}

fn code_lines(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Name and code of each function.
fn functions(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let rest = &code[at..];
        if !rest["fn".len()..].trim_start().starts_with(is_word) {
            continue; // the type of a pointer
        }
        // A declaration has no body.
        let mut depth = 0;
        let body = rest.char_indices().find(|(_, c)| {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, '{' | ';')
        });
        let Some((from, '{')) = body else { continue };
        let mut depth = 0;
        let end = rest[from..].char_indices().find(|(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        let end = end.map_or(rest.len(), |(end, _)| from + end + 1);
        found.push((line_of(code, at), &rest[..end]));
    }
    found
}

#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    let mut seen = 0;
    for source in sources() {
        let code = source.shipped();
        let lines = code_lines(code);
        if lines > FILE_LINES {
            long.push(format!("{} has {lines} lines of code", source.name));
        }
        for (line, function) in functions(code) {
            seen += 1;
            let lines = code_lines(function);
            if lines > FUNCTION_LINES {
                long.push(format!("{}:{line}: a function of {lines} lines", source.name));
            }
        }
    }
    assert!(seen > 300, "only {seen} functions were found");
    assert!(long.is_empty(), "too long: {long:#?}");
}

#[test]
fn every_counter_is_explained() {
    let page = fs::read_to_string(root().join("docs/statistics.md")).expect("docs/statistics.md");
    let mut switch = Switch::builder().port("vm1").start();
    let printed = switch.statistics();
    let mut names: BTreeSet<String> =
        Totals::default().named().map(|(name, _)| name.to_owned()).collect();
    assert!(
        names.iter().all(|name| printed.ports["vm1"].contains_key(name)),
        "all counters of a port are printed: {printed:?}"
    );
    names.extend(DropReason::ALL.iter().map(|reason| format!("drop_{reason}")));
    names.extend(printed.workers["0"].keys().cloned());
    assert!(page.contains("stats macs="), "docs/statistics.md shows the size of the MAC table");
    let missing: Vec<_> =
        names.iter().filter(|name| !page.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "docs/statistics.md has no row for {missing:?}");
    // And it explains nothing that isn't there.
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let name = row.split('`').next().unwrap_or_default();
        assert!(names.contains(name), "docs/statistics.md explains {name}, which is not counted");
    }
}

#[test]
fn every_counter_is_counted() {
    let sources = sources();
    let users: String = sources
        .iter()
        .filter(|source| source.name != "src/frame.rs")
        .map(Source::shipped)
        .collect();
    for (name, _) in Totals::default().named() {
        assert!(users.contains(&format!(".{name}.add(")), "nothing counts {name}");
    }
    for reason in DropReason::ALL {
        let used = words(&users, &format!("DropReason::{reason:?}")).next().is_some();
        assert!(used, "nothing drops for {reason:?}");
    }
}

#[test]
fn pages_name_no_machine_and_no_missing_file() {
    let mut pages = files(&root().join("docs"), "md");
    pages.extend(["README.md"].map(|name| root().join(name)));
    let mut links = 0;
    for page in &pages {
        let name = page.strip_prefix(root()).expect("in the repository").display();
        let text = fs::read_to_string(page).unwrap_or_else(|error| panic!("{name}: {error}"));
        for machine in ["/work/", "/tmp/wt", "/home/", "/root/"] {
            assert!(!text.contains(machine), "{name} has a path of one machine: {machine}");
        }
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let file = page.parent().expect("a directory").join(target);
            assert!(file.exists(), "{name} links to {target}, which is not there");
        }
    }
    assert!(links > 5, "only {links} links in {} pages", pages.len());
}

#[test]
fn the_reader_of_sources_is_not_fooled() {
    let code = without_comments(
        "let a = \"unsafe // {\"; // unsafe\nlet b = '{'; /* unsafe\n */ let c: &'a u8 = r#\"}\"#;\n\
         let d = '\\''; let e = \"\\\"}\";\n",
    );
    assert!(!code.contains("unsafe") && !code.contains(['{', '}']), "{code}");
    assert_eq!(code.lines().count(), 4, "{code}");
    assert!(code.contains("let c: &'a u8"), "{code}");
    let found: Vec<_> = imports("use crate::{ring::{a, b}, mem};\ncrate::sys::x()", "crate")
        .into_iter()
        .map(|(_, module)| module)
        .collect();
    assert_eq!(found, ["ring", "mem", "sys"]);
    let code = "trait T { fn a(); fn b(x: fn(u8)) -> u8 {\n if x {\n }\n\n }\n}\n";
    let found: Vec<_> = functions(code).into_iter().map(|(_, code)| code_lines(code)).collect();
    assert_eq!(found, [4]);
    assert!(has_reason("// SAFETY: so\nlet a =\n    unsafe { b };", 3));
    assert!(!has_reason("// SAFETY: so\nlet a = unsafe { b };\nlet c = unsafe { d };", 3));
}
