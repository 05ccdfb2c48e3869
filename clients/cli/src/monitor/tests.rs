//! Frames as they would stand on a terminal, compared with committed text files.
//!
//! After an intended change: `VOLLEY_BLESS=1 cargo test -p volley-cli frames_are`, then read the
//! difference as carefully as code.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;
use volley_protocol::snapshot::ClusterSnapshot;
use volley_protocol::{ErrorCode, Fault};

use super::look::Look;
use super::model::Model;
use super::{fixtures, overview, plain};

const MONO: Look = Look::new(false, false);
const ASCII: Look = Look::new(false, true);

struct Case {
    name: &'static str,
    size: (u16, u16),
    look: Look,
    model: fn() -> Model,
    /// Since the last snapshot.
    age: Duration,
}

const fn case(name: &'static str, size: (u16, u16), look: Look, model: fn() -> Model) -> Case {
    Case {
        name,
        size,
        look,
        model,
        age: Duration::ZERO,
    }
}

fn cases() -> Vec<Case> {
    let stale = Duration::from_secs(7);
    vec![
        case("waiting-80x24", (80, 24), MONO, waiting),
        case("empty-80x24", (80, 24), MONO, || with(fixtures::empty())),
        case("normal-80x24", (80, 24), MONO, || with(fixtures::normal())),
        case("normal-60x15", (60, 15), MONO, || with(fixtures::normal())),
        case("normal-59x15", (59, 15), MONO, || with(fixtures::normal())),
        case(
            "normal-120x40",
            (120, 40),
            MONO,
            || with(fixtures::normal()),
        ),
        case("normal-80x24-ascii", (80, 24), ASCII, || {
            with(fixtures::normal())
        }),
        case("degraded-80x24", (80, 24), MONO, || {
            with(fixtures::degraded())
        }),
        case("degraded-60x15", (60, 15), MONO, || {
            with(fixtures::degraded())
        }),
        Case {
            age: stale,
            ..case("stale-80x24", (80, 24), MONO, || with(fixtures::normal()))
        },
        Case {
            age: stale,
            ..case("stale-60x15", (60, 15), MONO, || with(fixtures::degraded()))
        },
        case("thousand-80x24", (80, 24), MONO, thousand_at_the_end),
        case(
            "hostile-80x24",
            (80, 24),
            MONO,
            || with(fixtures::hostile()),
        ),
        case("hostile-60x15-ascii", (60, 15), ASCII, || {
            with(fixtures::hostile())
        }),
        case("help-80x24", (80, 24), MONO, help),
    ]
}

fn with(snapshot: ClusterSnapshot) -> Model {
    let mut model = Model::new();
    for rate in [0.0, 20.0, 30.0, 38.0] {
        let mut earlier = snapshot.clone();
        earlier.rollouts_per_s = rate;
        earlier.tokens_per_s = rate * 450.0;
        model.hear(earlier, Instant::now());
    }
    model.hear(snapshot, Instant::now());
    model
}

fn waiting() -> Model {
    let mut model = Model::new();
    let message = "no coordinator at 127.0.0.1:7400 (tried for 1 s): nothing listens there";
    model.miss(&Fault::new(ErrorCode::CoordinatorUnreachable, message));
    model
}

fn thousand_at_the_end() -> Model {
    let mut model = with(fixtures::thousand());
    model.rows_visible = 9;
    model.apply(super::keymap::Action::Last);
    model
}

fn help() -> Model {
    let mut model = with(fixtures::normal());
    model.apply(super::keymap::Action::Help);
    model
}

fn frame(case: &Case) -> Buffer {
    let model = (case.model)();
    let freshness = model.freshness(Instant::now() + case.age);
    let backend = TestBackend::new(case.size.0, case.size.1);
    let mut terminal = Terminal::new(backend).expect("a test backend");
    let draw = |frame: &mut ratatui::Frame<'_>| {
        overview::draw(frame, &model, &freshness, "14:03:22Z", case.look);
    };
    terminal.draw(draw).expect("a test backend");
    terminal.backend().buffer().clone()
}

fn rows(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let cells: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
    let line = |row: &[&str]| {
        let mut line = String::new();
        let mut skip = 0;
        for symbol in row {
            // A wide sign covers the cell after it.
            if skip > 0 {
                skip -= 1;
                continue;
            }
            skip = crate::text::width(symbol).saturating_sub(1);
            line.push_str(symbol);
        }
        line.trim_end().to_owned()
    };
    cells.chunks(width).map(line).collect()
}

fn drawn(case: &Case) -> String {
    rows(&frame(case)).join("\n") + "\n"
}

fn file(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/monitor/frames");
    folder.join(format!("{name}.txt"))
}

fn all_frames() -> Vec<(String, String)> {
    let mut frames: Vec<_> = cases()
        .iter()
        .map(|case| (case.name.to_owned(), drawn(case)))
        .collect();
    for (name, snapshot) in [
        ("once-empty", fixtures::empty()),
        ("once-normal", fixtures::normal()),
        ("once-degraded", fixtures::degraded()),
        ("once-hostile", fixtures::hostile()),
    ] {
        frames.push((name.to_owned(), plain::lines(&snapshot).join("\n") + "\n"));
    }
    frames
}

/// `VOLLEY_BLESS=1` writes the committed frames anew; look at the difference before committing it.
#[allow(
    clippy::disallowed_methods,
    reason = "a switch of this test, not of the program"
)]
fn blessed() -> bool {
    std::env::var_os("VOLLEY_BLESS").is_some()
}

#[test]
fn frames_are_as_committed() {
    for (name, drawn) in all_frames() {
        if blessed() {
            std::fs::write(file(&name), &drawn).expect("the folder of frames");
        }
        let committed = std::fs::read_to_string(file(&name)).unwrap_or_default();
        assert!(
            committed == drawn,
            "{name} differs from its file; it is now\n{drawn}"
        );
    }
}

#[test]
fn nothing_from_outside_reaches_the_terminal() {
    let texts = all_frames().into_iter();
    for (name, drawn) in texts {
        let bad = drawn.chars().find(|c| {
            (c.is_control() && *c != '\n') || matches!(c, '\u{200f}' | '\u{202a}'..='\u{202e}')
        });
        assert_eq!(bad, None, "{name}");
    }
}

#[test]
fn every_frame_keeps_to_its_size_and_ascii_to_ascii() {
    for case in cases() {
        for row in rows(&frame(&case)) {
            assert!(
                crate::text::width(&row) <= usize::from(case.size.0),
                "{}: {row}",
                case.name
            );
            assert!(!case.look.ascii || row.is_ascii(), "{}: {row}", case.name);
        }
    }
}

#[test]
fn without_colour_there_is_none_and_with_it_the_same_words() {
    for snapshot in [fixtures::normal, fixtures::degraded, fixtures::hostile] {
        let model = with(snapshot());
        let draw = |look: Look| {
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a test backend");
            let freshness = model.freshness(Instant::now());
            let draw = |frame: &mut ratatui::Frame<'_>| {
                overview::draw(frame, &model, &freshness, "14:03:22Z", look);
            };
            terminal.draw(draw).expect("a test backend");
            terminal.backend().buffer().clone()
        };
        let (mono, colour) = (draw(MONO), draw(Look::new(true, false)));
        assert!(
            mono.content
                .iter()
                .all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
        );
        assert!(colour.content.iter().any(|cell| cell.fg == Color::Cyan));
        assert_eq!(rows(&mono), rows(&colour));
    }
}

#[test]
fn every_size_is_survived() {
    let models = [
        with(fixtures::hostile()),
        thousand_at_the_end(),
        Model::new(),
    ];
    for (width, height) in (0..=130)
        .step_by(7)
        .flat_map(|w| (0..=45).step_by(4).map(move |h| (w, h)))
    {
        for model in &models {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend");
            let freshness = model.freshness(Instant::now());
            let draw = |frame: &mut ratatui::Frame<'_>| {
                overview::draw(frame, model, &freshness, "14:03:22Z", MONO);
            };
            terminal.draw(draw).expect("a test backend");
        }
    }
}
