//! The framed parts of the screen: workers, events, help.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use volley_protocol::snapshot::{ClusterSnapshot, WorkerState};

use super::keymap::KEYMAP;
use super::look::{Look, Tone};
use super::model::Model;
use super::view;
use super::workers::{self, WorkerRow};
use crate::text;

/// A column of workers: head, width, from which inner width on it is shown.
struct Column {
    head: &'static str,
    columns: usize,
    from: u16,
    right: bool,
}

const fn column(head: &'static str, columns: usize, from: u16, right: bool) -> Column {
    Column {
        head,
        columns,
        from,
        right,
    }
}

/// Everything fits 78 inner columns; at 58 the figures that can wait are left out.
const COLUMNS: [Column; 8] = [
    column("NAME", 14, 0, false),
    column("STATE", 10, 0, false),
    column("SLOTS", 9, 0, true),
    column("ADAPTER", 7, 0, true),
    column("EPISODES", 9, 77, true),
    column("TOK/S", 6, 0, true),
    column("BEAT", 6, 0, true),
    column("PID", 8, 76, true),
];

/// Draws the workers from `model.top` on; tells how many fitted.
pub(super) fn workers(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    snapshot: &ClusterSnapshot,
    look: Look,
) -> usize {
    let rows = workers::rows(snapshot, model.sort);
    let visible = usize::from(area.height).saturating_sub(3).max(1);
    let top = model.top.min(rows.len().saturating_sub(visible));
    let shown = &rows[top..rows.len().min(top + visible)];
    let block = framed(&workers_title(snapshot, area.width, look), look);
    let width = area.width.saturating_sub(2);
    let mut lines = vec![header(width, look)];
    lines.extend(shown.iter().map(|row| row_line(row, width, look)));
    if rows.is_empty() {
        let words = " none; they start with the work, or by hand: volley worker";
        lines.push(Line::styled(words, look.style(Tone::Quiet)));
    }
    let mut block = block;
    if rows.len() > visible {
        let place = format!(" {}-{} of {} ", top + 1, top + shown.len(), rows.len());
        block = block.title_bottom(Line::raw(place).right_aligned());
    }
    let order = format!(" by {} ", model.sort.word());
    block = block.title_bottom(Line::styled(order, look.style(Tone::Quiet)));
    frame.render_widget(Paragraph::new(lines).block(block), area);
    visible
}

fn workers_title(snapshot: &ClusterSnapshot, columns: u16, look: Look) -> String {
    let scaling = &snapshot.scaling;
    let up = snapshot
        .workers
        .iter()
        .filter(|w| w.state == WorkerState::Up)
        .count();
    let mut title = format!(
        " WORKERS {up}/{} (want {}, {}..{}) ",
        snapshot.workers.len(),
        scaling.wanted,
        scaling.min,
        scaling.max
    );
    let room = usize::from(columns).saturating_sub(title.len() + 3);
    if !scaling.reason.is_empty() && room > 8 {
        title.push_str(&look.line(&scaling.reason, room));
        title.push(' ');
    }
    title
}

fn framed(title: &str, look: Look) -> Block<'static> {
    Block::default()
        .borders(Borders::ALL)
        .border_set(look.border())
        .border_style(look.style(Tone::Quiet))
        .title(Line::styled(title.to_owned(), look.style(Tone::Strong)))
}

fn shown_columns(width: u16) -> impl Iterator<Item = (usize, &'static Column)> {
    COLUMNS
        .iter()
        .enumerate()
        .filter(move |(_, column)| width >= column.from)
}

fn header(width: u16, look: Look) -> Line<'static> {
    let mut words = String::new();
    for (_, column) in shown_columns(width) {
        words.push_str(&padded(column.head, column));
        words.push(' ');
    }
    Line::styled(words, look.style(Tone::Quiet))
}

fn row_line(row: &WorkerRow, width: u16, look: Look) -> Line<'static> {
    let state = match row.state {
        WorkerState::Up => Tone::Good,
        WorkerState::Starting | WorkerState::Draining => Tone::Warn,
        WorkerState::Lost => Tone::Bad,
    };
    let warn_if = |bad: bool| if bad { Tone::Warn } else { Tone::Plain };
    let cells = [
        (look.line(&row.name, COLUMNS[0].columns), Tone::Plain),
        (row.state_words(), state),
        (row.slots.clone(), Tone::Plain),
        (row.adapter.clone(), warn_if(row.lags)),
        (row.episodes.clone(), Tone::Plain),
        (row.tokens_per_s.clone(), Tone::Plain),
        (row.heartbeat.clone(), warn_if(row.late)),
        (row.pid.clone(), Tone::Quiet),
    ];
    let mut spans = Vec::with_capacity(2 * cells.len());
    for (at, column) in shown_columns(width) {
        let (words, tone) = &cells[at];
        spans.push(Span::styled(padded(words, column), look.style(*tone)));
        spans.push(Span::raw(" "));
    }
    spans.into()
}

fn padded(words: &str, column: &Column) -> String {
    let words = text::fit(words, column.columns);
    let padding = " ".repeat(column.columns.saturating_sub(text::width(&words)));
    if column.right {
        padding + &words
    } else {
        words + &padding
    }
}

/// Draws what happened, newest first.
pub(super) fn events(frame: &mut Frame<'_>, area: Rect, snapshot: &ClusterSnapshot, look: Look) {
    let room = usize::from(area.width).saturating_sub(3);
    let visible = usize::from(area.height).saturating_sub(2);
    let mut lines: Vec<Line<'_>> = view::events(snapshot)
        .iter()
        .take(visible)
        .map(|event| Line::raw(format!(" {}", look.line(event, room))))
        .collect();
    if lines.is_empty() {
        lines.push(Line::styled(" nothing yet", look.style(Tone::Quiet)));
    }
    frame.render_widget(Paragraph::new(lines).block(framed(" EVENTS ", look)), area);
}

/// Draws what the keys do.
pub(super) fn help(frame: &mut Frame<'_>, area: Rect, look: Look) {
    let lines: Vec<Line<'_>> = KEYMAP
        .iter()
        .map(|binding| {
            let key = Span::styled(format!(" {:<6}", binding.shown), look.style(Tone::Strong));
            Line::from(vec![key, Span::raw(binding.help)])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(framed(" HELP ", look)), area);
}
