//! The head of the screen: one line for each question.

use std::time::Duration;

use ratatui::text::{Line, Span};
use volley_protocol::snapshot::ClusterSnapshot;

use super::look::{Look, Tone};
use super::model::{Freshness, Model};
use super::view::{Health, RunView, job_counts, worst_problem};
use crate::text;

/// Columns of a curve in the head.
const CURVE_COLUMNS: usize = 12;

/// A piece of a line that may be left out where there is no room; 0 stays for ever.
pub(super) struct Piece {
    words: String,
    tone: Tone,
    leave_out: u8,
}

/// A piece.
pub(super) fn piece(words: impl Into<String>, tone: Tone, leave_out: u8) -> Piece {
    Piece {
        words: words.into(),
        tone,
        leave_out,
    }
}

/// Pieces side by side, without those that do not fit, the highest `leave_out` first.
pub(super) fn fitted(mut pieces: Vec<Piece>, columns: u16, look: Look) -> Line<'static> {
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

/// The lines above the frames.
pub(super) fn lines(
    model: &Model,
    snapshot: &ClusterSnapshot,
    freshness: &Freshness,
    clock: &str,
    look: Look,
    columns: u16,
) -> Vec<Line<'static>> {
    let run = RunView::of(snapshot);
    let run = run.as_ref();
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
