//! `claviger explain CODE`: what an error means and what to do, without a network.

use serde_json::json;

use crate::error::{CliError, Exit};
use crate::output::Output;

/// Each code, in alphabetical order: what it means, what to do.
const PAGES: &str = include_str!("explain.txt");

pub(crate) fn run(code: Option<&str>, output: Output) -> Result<(), CliError> {
    let Some(code) = code else {
        let list: Vec<&str> = pages().map(|(code, _)| code).collect();
        output.result(
            &json!({"schema": "claviger.explain/v1", "codes": list}),
            &list.join("\n"),
        );
        return Ok(());
    };
    let page = pages()
        .find(|(found, _)| *found == code)
        .map(|(_, page)| page.trim())
        .ok_or_else(|| {
            CliError::new(
                Exit::NotFound,
                "unknown_code",
                format!("there is no page for '{code}'"),
            )
            .fix("claviger explain lists all codes")
        })?;
    output.result(
        &json!({"schema": "claviger.explain/v1", "code": code, "page": page}),
        &format!("{code}\n\n{page}"),
    );
    Ok(())
}

/// Why an error happens and what to do about it, by its page; each on one line.
pub(crate) fn advice(code: &str) -> (Option<String>, Option<String>) {
    let Some((_, page)) = pages().find(|(found, _)| *found == code) else {
        return (None, None);
    };
    let part = |start: &str, end: &str| {
        let (_, rest) = page.split_once(start)?;
        let text = rest.split_once(end).map_or(rest, |(text, _)| text);
        let words: Vec<&str> = text.split_whitespace().collect();
        (!words.is_empty()).then(|| words.join(" "))
    };
    (
        part("Why: ", "\nWhat to do: "),
        part("\nWhat to do: ", "\n\n"),
    )
}

/// A page starts with `# code` at the start of a line.
fn pages() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGES
        .split("\n# ")
        .filter_map(|page| page.trim_start_matches("# ").split_once('\n'))
        .map(|(code, page)| (code.trim(), page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_gives_a_reason_and_advice() {
        for (code, _) in pages().filter(|(code, _)| *code != "exit-codes") {
            let (why, fix) = advice(code);
            assert!(why.is_some_and(|why| !why.contains('\n')), "{code}");
            assert!(fix.is_some_and(|fix| !fix.contains("Exit code")), "{code}");
        }
        assert_eq!(advice("no_such_code"), (None, None));
    }

    #[test]
    fn pages_are_sorted_unique_and_say_something() {
        let codes: Vec<&str> = pages().map(|(code, _)| code).collect();
        let mut sorted = codes.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(codes, sorted);
        assert!(pages().all(|(_, page)| page.trim().len() > 20));
    }
}
