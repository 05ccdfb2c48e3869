//! The screen: a head that answers the questions, workers, events, keys.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::head::{self, fitted, piece};
use super::keymap::KEYMAP;
use super::look::{Look, Tone};
use super::model::{Freshness, Model};
use super::panels;

/// Smaller terminals get a notice instead of a torn screen.
pub(super) const COLUMNS_MIN: u16 = 60;
/// As above.
pub(super) const ROWS_MIN: u16 = 15;

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
    let head = head::lines(model, snapshot, freshness, clock, look, area.width);
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
