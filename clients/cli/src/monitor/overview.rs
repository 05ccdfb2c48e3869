//! The screen: a head that answers the questions, workers, events, keys.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use volley_protocol::snapshot::ClusterSnapshot;

use super::keymap::KEYMAP;
use super::look::{Look, Tone};
use super::model::{Freshness, Model};
use super::panels;
use super::view::{Health, RunView, job_counts, worst_problem};
use crate::text;

/// Smaller terminals get a notice instead of a torn screen.
pub(super) const COLUMNS_MIN: u16 = 60;
/// As above.
pub(super) const ROWS_MIN: u16 = 15;

/// Columns of a curve in the head.
const CURVE_COLUMNS: usize = 12;

/// Draws a frame; tells how many workers fitted.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    model: &Model,
    freshness: &Freshness,
    clock: &str,
    look: Look,
) -> usize {
    let area = frame.area();
    if area.width < COLUMNS_MIN || area.height < ROWS_MIN {
        let size = format!("{}x{}", area.width, area.height);
        let words = format!("too small: {size}, at least {COLUMNS_MIN}x{ROWS_MIN} (q quits)");
        frame.render_widget(Paragraph::new(words), area);
        return 1;
    }
    let Some(snapshot) = &model.snapshot else {
        waiting(frame, area, freshness, clock, look);
        return 1;
    };
    let run = RunView::of(snapshot);
    let head = head(
        model,
        snapshot,
        run.as_ref(),
        freshness,
        clock,
        look,
        area.width,
    );
    let events_rows = if area.height >= 24 { 6 } else { 3 };
    let [head_area, workers, events, keys] = Layout::vertical([
        Constraint::Length(head.len() as u16),
        Constraint::Min(4),
        Constraint::Length(events_rows),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), head_area);
    let rows = if model.help {
        panels::help(frame, workers, look);
        model.rows_visible
    } else {
        panels::workers(frame, workers, model, snapshot, look)
    };
    panels::events(frame, events, snapshot, look);
    frame.render_widget(key_bar(area.width, look), keys);
    rows
}

/// A piece of a line that may be left out where there is no room; 0 stays for ever.
struct Piece {
    words: String,
    tone: Tone,
    leave_out: u8,
}

fn piece(words: impl Into<String>, tone: Tone, leave_out: u8) -> Piece {
    Piece {
        words: words.into(),
        tone,
        leave_out,
    }
}

/// Pieces side by side, without those that do not fit, the highest `leave_out` first.
fn fitted(mut pieces: Vec<Piece>, columns: u16, look: Look) -> Line<'static> {
    let width = |pieces: &[Piece]| {
        pieces
            .iter()
            .map(|piece| text::width(&piece.words))
            .sum::<usize>()
    };
    while width(&pieces) > usize::from(columns) {
        let worst = pieces
            .iter()
            .map(|piece| piece.leave_out)
            .max()
            .unwrap_or(0);
        if worst == 0 {
            break;
        }
        pieces.retain(|piece| piece.leave_out != worst);
    }
    let spans = pieces
        .into_iter()
        .map(|piece| Span::styled(piece.words, look.style(piece.tone)));
    spans.collect::<Vec<_>>().into()
}

fn head(
    model: &Model,
    snapshot: &ClusterSnapshot,
    run: Option<&RunView>,
    freshness: &Freshness,
    clock: &str,
    look: Look,
    columns: u16,
) -> Vec<Line<'static>> {
    let mut lines = vec![
        fitted(title(snapshot, run, freshness, clock, look), columns, look),
        problem(snapshot, freshness, look, columns),
        fitted(queue(snapshot, look), columns, look),
        fitted(rates(model, snapshot, look), columns, look),
    ];
    if let Some(run) = run {
        lines.push(fitted(reward(run, look), columns, look));
        lines.push(fitted(figures(run, look), columns, look));
    }
    lines
}

fn title(
    snapshot: &ClusterSnapshot,
    run: Option<&RunView>,
    freshness: &Freshness,
    clock: &str,
    look: Look,
) -> Vec<Piece> {
    let uptime = text::duration(Duration::from_millis(snapshot.uptime_ms));
    let mut pieces = vec![
        piece(" volley", Tone::Strong, 6),
        piece(
            format!("  {}", look.line(&snapshot.cluster, 20)),
            Tone::Strong,
            0,
        ),
        piece(
            format!("  v{}", look.line(&snapshot.version, 12)),
            Tone::Quiet,
            7,
        ),
        piece(format!("  up {uptime}"), Tone::Plain, 5),
    ];
    if let Freshness::Stale { age_s } = freshness {
        let words = format!(
            "  {} STALE {age_s} s, reconnecting",
            Health::Unreachable.letter()
        );
        pieces.push(piece(words, Tone::Bad, 0));
    } else {
        let health = Health::of(snapshot);
        let sign = look.health_sign(health);
        let words = format!("  {sign} {} {}", health.letter(), health.word());
        pieces.push(piece(words, look.health_tone(health), 0));
    }
    if let Some(run) = run {
        let step = format!("  step {}/{}", run.step, run.steps_total);
        pieces.push(piece(step, Tone::Strong, 1));
        let tone = if run.lag > 0.0 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        pieces.push(piece(
            format!("  adapter v{} lag {:.1}", run.step, run.lag),
            tone,
            3,
        ));
    }
    pieces.push(piece(format!("  {clock}"), Tone::Quiet, 4));
    pieces
}

fn problem(
    snapshot: &ClusterSnapshot,
    freshness: &Freshness,
    look: Look,
    columns: u16,
) -> Line<'static> {
    let room = usize::from(columns).saturating_sub(3);
    if let Freshness::Stale { age_s } = freshness {
        let words = format!("no answer for {age_s} s; this is what was last seen");
        return Line::styled(
            format!(" ! {}", look.line(&words, room)),
            look.style(Tone::Bad),
        );
    }
    match worst_problem(snapshot) {
        Some(problem) => {
            let more = snapshot.problems.len().saturating_sub(1);
            let more = if more > 0 {
                format!(" (+{more} more)")
            } else {
                String::new()
            };
            let words = look.line(&problem, room.saturating_sub(more.len()));
            Line::styled(format!(" ! {words}{more}"), look.style(Tone::Warn))
        }
        None => Line::styled(" no problems", look.style(Tone::Quiet)),
    }
}

fn queue(snapshot: &ClusterSnapshot, look: Look) -> Vec<Piece> {
    let counts = job_counts(snapshot);
    let history: Vec<f64> = snapshot
        .queue_history
        .iter()
        .map(|n| f64::from(*n))
        .collect();
    let mut pieces = vec![
        piece(" JOBS ", Tone::Quiet, 0),
        piece(format!("{} open", counts.open), Tone::Strong, 0),
        piece(format!(" {} done", counts.done), Tone::Plain, 2),
    ];
    if counts.cancelled > 0 {
        pieces.push(piece(
            format!(" {} cancelled", counts.cancelled),
            Tone::Plain,
            4,
        ));
    }
    pieces.extend([
        piece("   QUEUE ", Tone::Quiet, 0),
        piece(text::count(snapshot.dispatchable), Tone::Strong, 0),
        piece(
            format!(" {}", look.curve(&history, CURVE_COLUMNS)),
            Tone::Curve,
            3,
        ),
        piece("   LEASED ", Tone::Quiet, 0),
        piece(text::count(snapshot.leased), Tone::Strong, 0),
    ]);
    if counts.failed_rollouts > 0 {
        let failed = format!("{}!", text::count(counts.failed_rollouts));
        pieces.extend([
            piece("   FAILED ", Tone::Quiet, 1),
            piece(failed, Tone::Warn, 1),
        ]);
    }
    pieces
}

fn rates(model: &Model, snapshot: &ClusterSnapshot, look: Look) -> Vec<Piece> {
    let curve = |history: &std::collections::VecDeque<f64>| {
        let values: Vec<f64> = history.iter().copied().collect();
        format!(" {}", look.curve(&values, CURVE_COLUMNS))
    };
    vec![
        piece(" ROLLOUTS/S ", Tone::Quiet, 0),
        piece(
            text::rate(f64::from(snapshot.rollouts_per_s)),
            Tone::Strong,
            0,
        ),
        piece(curve(&model.rollouts), Tone::Curve, 1),
        piece("   TOKENS/S ", Tone::Quiet, 0),
        piece(
            text::rate(f64::from(snapshot.tokens_per_s)),
            Tone::Strong,
            0,
        ),
        piece(curve(&model.tokens), Tone::Curve, 1),
    ]
}

fn reward(run: &RunView, look: Look) -> Vec<Piece> {
    let mut pieces = vec![
        piece(" RUN ", Tone::Quiet, 0),
        piece(look.line(&run.name, 16), Tone::Strong, 0),
        piece(format!(" {}", run.state), Tone::Plain, 2),
        piece("   REWARD ", Tone::Quiet, 0),
    ];
    match run.reward {
        Some(reward) => pieces.push(piece(format!("{reward:.3}"), Tone::Strong, 0)),
        None => pieces.push(piece("no step yet", Tone::Quiet, 0)),
    }
    let curve = look.curve(&run.history, 2 * CURVE_COLUMNS);
    pieces.push(piece(format!(" {curve}"), Tone::Curve, 3));
    if let Some(trend) = run.trend {
        let tone = if trend < 0.0 { Tone::Warn } else { Tone::Good };
        pieces.push(piece(format!(" ({trend:+.2}/100 steps)"), tone, 1));
    }
    if run.more > 0 {
        pieces.push(piece(format!("  +{} more", run.more), Tone::Quiet, 4));
    }
    pieces
}

fn figures(run: &RunView, look: Look) -> Vec<Piece> {
    debug_assert!(run.figures.len() < usize::from(u8::MAX));
    let mut pieces = Vec::with_capacity(2 * run.figures.len());
    for (at, (name, value)) in run.figures.iter().enumerate() {
        let (gap, leave_out) = (if at == 0 { " " } else { "   " }, at as u8);
        pieces.push(piece(format!("{gap}{name} "), Tone::Quiet, leave_out));
        pieces.push(piece(look.line(value, 16), Tone::Plain, leave_out));
    }
    pieces
}

fn waiting(frame: &mut Frame<'_>, area: Rect, freshness: &Freshness, clock: &str, look: Look) {
    let [body, keys] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(area);
    let mut lines = vec![
        Line::styled(format!(" volley  {clock}"), look.style(Tone::Strong)),
        Line::styled(" waiting for the coordinator", look.style(Tone::Warn)),
    ];
    if let Freshness::Waiting { why: Some(why) } = freshness {
        let room = usize::from(area.width).saturating_sub(2);
        lines.push(Line::raw(format!(" {}", look.line(why, room))));
    }
    frame.render_widget(Paragraph::new(lines), body);
    frame.render_widget(key_bar(area.width, look), keys);
}

/// The keys; on narrow terminals the first ones, the help has all.
fn key_bar(columns: u16, look: Look) -> Line<'static> {
    let mut pieces = Vec::with_capacity(2 * KEYMAP.len());
    for (leave_out, binding) in (0u8..).zip(&KEYMAP) {
        let gap = if leave_out == 0 { " " } else { "  " };
        pieces.push(piece(
            format!("{gap}{}", binding.shown),
            Tone::Strong,
            leave_out,
        ));
        pieces.push(piece(format!(" {}", binding.word), Tone::Quiet, leave_out));
    }
    fitted(pieces, columns, look)
}
