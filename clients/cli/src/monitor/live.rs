//! The live screen: a terminal, its keys, and snapshots twice a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use volley_client::{Client, Contact};
use volley_protocol::Fault;
use volley_protocol::snapshot::ClusterSnapshot;
use volley_runtime::process::ShutdownSignals;

use super::keymap::{self, Action};
use super::look::Look;
use super::model::Model;
use super::overview;
use crate::errors::Stop;

/// Between snapshots.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Between frames when nothing else happens: clock and age go on.
const TICK: Duration = Duration::from_secs(1);

/// How long the thread that reads keys sleeps before it looks whether it should end.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// What wakes the screen.
enum Wake {
    Snapshot(Box<ClusterSnapshot>),
    Missed(Fault),
    Key(Action),
    Resized,
    Tick,
    End,
}

/// Shows the cluster until somebody quits.
pub(super) async fn run(client: Client, look: Look) -> Result<(), Stop> {
    let mut signals = ShutdownSignals::install()?;
    let (wake, mut wakes) = mpsc::channel(64);
    let asking = tokio::spawn(ask(client.clone(), wake.clone()));
    let mut screen = Screen::open()?;
    let keys = Keys::read_into(wake);
    let mut model = Model::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        if let Err(error) = screen.draw(&mut model, look) {
            break Err(error);
        }
        let woken = tokio::select! {
            wake = wakes.recv() => wake.unwrap_or(Wake::End),
            _ = tick.tick() => Wake::Tick,
            _ = signals.recv() => Wake::End,
        };
        match woken {
            Wake::Snapshot(snapshot) => model.hear(*snapshot, Instant::now()),
            Wake::Missed(fault) if is_refusal(&client) => break Err(fault.into()),
            Wake::Missed(fault) => model.miss(&fault),
            Wake::Key(action) => model.apply(action),
            Wake::Resized | Wake::Tick => {}
            Wake::End => break Ok(()),
        }
        if model.quit {
            break Ok(());
        }
    };
    asking.abort();
    drop(screen);
    keys.end();
    client.close().await;
    outcome
}

/// Asks for snapshots; the next one only when the last has come, so a slow link is not flooded.
async fn ask(client: Client, wake: mpsc::Sender<Wake>) {
    loop {
        let next = match client.snapshot().await {
            Ok(snapshot) => Wake::Snapshot(Box::new(snapshot)),
            Err(fault) => Wake::Missed(fault),
        };
        if wake.send(next).await.is_err() {
            return;
        }
        sleep(ASK_EVERY).await;
    }
}

fn is_refusal(client: &Client) -> bool {
    matches!(&*client.contact().borrow(), Contact::Refused(_))
}

/// The terminal in its other mode; given back however this ends, by a panic too.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> Result<Self, Stop> {
        // It also sets a panic hook that restores the terminal before the message is printed.
        Ok(Self {
            terminal: ratatui::try_init()?,
        })
    }

    fn draw(&mut self, model: &mut Model, look: Look) -> Result<(), Stop> {
        let freshness = model.freshness(Instant::now());
        let mut rows = 0;
        self.terminal.draw(|frame| {
            rows = overview::draw(frame, model, &freshness, &clock(SystemTime::now()), look);
        })?;
        model.rows_visible = rows;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = ratatui::try_restore();
    }
}

/// The thread that reads keys: terminals have no asynchronous face that works everywhere.
struct Keys {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Keys {
    fn read_into(wake: mpsc::Sender<Wake>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let read = match event::poll(KEY_WAIT) {
                    Ok(true) => event::read(),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                };
                let woken = match read {
                    Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                        keymap::action(key).map(Wake::Key)
                    }
                    Ok(Event::Resize(..)) => Some(Wake::Resized),
                    Ok(_) => None,
                    // The terminal is gone.
                    Err(_) => Some(Wake::End),
                };
                if woken.is_some_and(|woken| wake.blocking_send(woken).is_err()) {
                    return;
                }
            }
        });
        Self { ended, thread }
    }

    fn end(self) {
        self.ended.store(true, Ordering::Relaxed);
        // A panic of that thread has been told by its hook.
        let _ = self.thread.join();
    }
}

/// Time of day in UTC: what all machines of a cluster agree on.
fn clock(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!(
        "{:02}:{:02}:{:02}Z",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_utc() {
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(clock(time), "22:13:20Z");
    }
}
