//! Durations as a person reads them.
//!
//! In: seconds. Out: two units at most, such as `9.2s`, `3m12s`, `4h05m`, `2d07h`.

/// Minutes, hours and days in seconds.
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `seconds` in at most two units, cut off, not rounded; `-` for what is no duration (negative or not finite).
#[must_use]
pub fn human(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    // A float beyond u64 saturates: 5e11 years is as good as any number here.
    let whole = seconds as u64;
    if whole < MINUTE {
        let tenths = (seconds * 10.0) as u64;
        format!("{}.{}s", tenths / 10, tenths % 10)
    } else if whole < HOUR {
        format!("{}m{:02}s", whole / MINUTE, whole % MINUTE)
    } else if whole < DAY {
        format!("{}h{:02}m", whole / HOUR, whole % HOUR / MINUTE)
    } else {
        format!("{}d{:02}h", whole / DAY, whole % DAY / HOUR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (seconds, want) in [
            (0.0, "0.0s"),
            (9.2, "9.2s"),
            (59.99, "59.9s"),
            (60.0, "1m00s"),
            (192.7, "3m12s"),
            (3_599.9, "59m59s"),
            (14_700.0, "4h05m"),
            (86_399.0, "23h59m"),
            (198_000.0, "2d07h"),
            (f64::MAX, "213503982334601d07h"),
            (-1.0, "-"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(human(seconds), want);
        }
    }
}
