# Short names for what CONTRIBUTING.md describes; nothing here is needed to build or test.

# Lists the recipes.
default:
    @just --list

# The whole system on this machine: no key, no set-up.
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# Every test of every crate.
test:
    cargo test

# What CI asks of the sources.
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings

# Formats everything.
fmt:
    cargo fmt

# Everything that CI runs.
ci:
    .ci/run

# The tests that print figures (SPECIFICATION.md); a quiet machine gives better ones.
bench:
    cargo test -p claviger-sandbox --test sandbox -- measure
    cargo test -p claviger-vault many_callers_share_one_sync -- --nocapture
    cargo test -p claviger-vault-memory --test scan throughput -- --nocapture
