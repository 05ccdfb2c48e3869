# Short names for what CONTRIBUTING.md describes; `just` alone lists them.

default:
    @just --list

# Format, house rules, lints: seconds after the first time.
check:
    cargo fmt --all --check
    cargo xtask tidy
    cargo clippy --workspace --all-targets -- -D warnings

# Every test that needs nothing but Rust.
test:
    cargo test --workspace

# What CI runs, the Python peers included.
ci:
    .ci/run

# Ten thousand simulated cluster-hours with seeds that CI does not run: minutes of every core.
night:
    VOLLEY_SIM_FIRST=1000000 VOLLEY_SIM_RUNS=10000 \
        cargo test --release -p volley-tests --test sim clusters -- --nocapture

# A thousand kills of every role, with real processes: most of an hour.
torture:
    VOLLEY_TORTURE_KILLS=1000 \
        cargo test --release -p volley-tests --test e2e torture -- --nocapture

# Licences, bans and advisories of third-party crates (needs cargo-deny).
deny:
    cargo deny check

# The documentation of all crates, without warnings.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
