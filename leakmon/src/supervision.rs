//! What the service manager is told (`sd_notify(3)`): ready, alive, reloading, stopping.
//!
//! In: turns of the event loop, and the daemon's phases. Out: datagrams to the socket that systemd names in `NOTIFY_SOCKET`;
//! nothing without one. It knows nothing of what the loop does.
//!
//! The watchdog is fed by [`Pulse::beat`], which the event loop alone calls: no timer, no other thread. A loop that hangs is
//! restarted, however well HTTP still answers.

use crate::export::snapshot::Heartbeat;
use sd_notify::NotifyState;
use std::{sync::Arc, time::Duration};

/// How often the loop beats.
const BEAT: Duration = Duration::from_secs(1);

/// Beats in a watchdog's time, at least; systemd asks for two (`sd_watchdog_enabled(3)`).
const BEATS_PER_WATCHDOG: u32 = 4;

/// Says that the event loop runs.
#[derive(Clone, Debug)]
pub struct Pulse {
    heartbeat: Arc<Heartbeat>,
    /// Longest silence that systemd bears; `None` where it does not watch.
    watchdog: Option<Duration>,
}

impl Pulse {
    /// A pulse that beats this heart, and systemd's watchdog where it asks for it.
    #[must_use]
    pub fn new(heartbeat: Arc<Heartbeat>) -> Self {
        Self {
            heartbeat,
            watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()),
        }
    }

    /// Time between two beats.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.watchdog
            .map_or(BEAT, |longest| BEAT.min(longest / BEATS_PER_WATCHDOG))
    }

    /// The loop runs.
    pub fn beat(&self) {
        self.heartbeat.beat();
        if self.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// The daemon serves; `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The daemon ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager can't be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_watchdog_is_fed_several_times_in_its_time() {
        let pulse = |watchdog| Pulse {
            heartbeat: Arc::new(Heartbeat::since(Instant::now())),
            watchdog,
        };
        assert_eq!(pulse(None).interval(), BEAT);
        assert_eq!(pulse(Some(Duration::from_secs(30))).interval(), BEAT);
        assert_eq!(
            pulse(Some(Duration::from_secs(2))).interval(),
            Duration::from_millis(500)
        );
    }
}
