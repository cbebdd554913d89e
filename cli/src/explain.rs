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
    fn pages_are_sorted_unique_and_say_something() {
        let codes: Vec<&str> = pages().map(|(code, _)| code).collect();
        let mut sorted = codes.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(codes, sorted);
        assert!(pages().all(|(_, page)| page.trim().len() > 20));
    }
}
