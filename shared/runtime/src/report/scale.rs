//! From numbers to places: axes, smoothing, thinning. Pure.

/// More points than this are averaged: no screen shows them, and a page must stay small.
pub(super) const POINTS_MAX: usize = 480;

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
}

impl Scale {
    /// An axis with about `ticks` round marks that holds all finite values; a share of something
    /// (all values within 0 and 1, most of it used) gets the whole of it.
    pub(super) fn holding(values: impl Iterator<Item = f64>, ticks: usize) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low == high {
            // A constant lies in the middle; 0 lies on the ground.
            let room = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
            (low, high) = (if low == 0.0 { 0.0 } else { low - room }, high + room);
        }
        // The ground is shown when it is near: a chart must not make little look like much.
        if low > 0.0 && low < 0.4 * high {
            low = 0.0;
        }
        if high < 0.0 && high > 0.4 * low {
            high = 0.0;
        }
        if low >= 0.0 && (0.6..=1.0).contains(&high) {
            (low, high) = (0.0, 1.0);
        }
        Self::round(low, high, ticks)
    }

    /// The same, with the ground in it when no value is below: heights can then be compared.
    pub(super) fn grounded(values: impl Iterator<Item = f64> + Clone, ticks: usize) -> Self {
        let positive = values
            .clone()
            .filter(|value| value.is_finite())
            .all(|value| value >= 0.0);
        Self::holding(values.chain(positive.then_some(0.0)), ticks)
    }

    fn round(low: f64, high: f64, ticks: usize) -> Self {
        let step = round_step((high - low) / ticks.max(1) as f64);
        let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
        let ticks: Vec<f64> = (first..=last).map(|n| n as f64 * step).collect();
        Self {
            low: first as f64 * step,
            high: last as f64 * step,
            ticks,
        }
    }

    /// An axis of whole steps from 0.
    pub(super) fn steps(last: f64) -> Self {
        let step = round_step(last.max(1.0) / 6.0).max(1.0);
        let high = last.max(1.0);
        let ticks = (0..=(high / step) as u64)
            .map(|n| n as f64 * step)
            .collect();
        Self {
            low: 0.0,
            high,
            ticks,
        }
    }

    /// Place of a value within `from`..`to`.
    pub(super) fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.low) / (self.high - self.low) * (to - from)
    }
}

/// 1, 2 or 5 times a power of ten, the nearest above.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|digit| digit * power >= raw * 0.999);
    digit.unwrap_or(10.0) * power
}

/// Points of a curve. A missing or infinite value breaks it.
pub(super) type Points = Vec<(f64, f64)>;

/// At most [`POINTS_MAX`] points, each the mean of its neighbours.
pub(super) fn thinned(points: &[(f64, f64)]) -> Points {
    let size = points.len().div_ceil(POINTS_MAX).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (
            part.iter().map(|p| p.0).sum::<f64>() / n,
            part.iter().map(|p| p.1).sum::<f64>() / n,
        )
    };
    points.chunks(size).map(mean).collect()
}

/// A mean over the neighbours on both sides, nearer ones counting more. It does not lag behind,
/// as the usual exponential mean does, and it ends where the data ends.
pub(super) fn smoothed(points: &[(f64, f64)]) -> Points {
    let reach = (points.len() / 12).clamp(1, 60) as isize;
    let last = points.len() as isize - 1;
    let mean_at = |at: isize| {
        let (mut sum, mut weights) = (0.0, 0.0);
        for near in (at - reach).max(0)..=(at + reach).min(last) {
            let weight = (reach + 1 - (near - at).abs()) as f64;
            let value = points[near as usize].1;
            if value.is_finite() {
                sum += weight * value;
                weights += weight;
            }
        }
        sum / weights
    };
    points
        .iter()
        .zip(0..)
        .map(|(point, at)| (point.0, mean_at(at)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(values: &[f64]) -> (f64, f64) {
        let scale = Scale::holding(values.iter().copied(), 4);
        assert!(
            scale.ticks.len() >= 2 && scale.ticks.len() <= 8,
            "{scale:?}"
        );
        (scale.low, scale.high)
    }

    #[test]
    fn axes_are_round_and_honest() {
        assert_eq!(holding(&[0.31, 0.95]), (0.0, 1.0));
        assert_eq!(holding(&[0.02, 0.005]), (0.0, 0.02));
        assert_eq!(holding(&[1020.0, 1060.0]), (1020.0, 1060.0));
        assert_eq!(holding(&[-3.0, 2.0]), (-4.0, 2.0));
        assert_eq!(holding(&[0.0, 0.0]), (0.0, 1.0));
        assert_eq!(holding(&[2.0, 2.0]), (0.0, 3.0));
        assert_eq!(holding(&[f64::NAN, f64::INFINITY]), (0.0, 1.0));
        assert_eq!(
            Scale::steps(60.0).ticks,
            [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
        );
        assert_eq!(Scale::steps(0.0).high, 1.0);
        assert_eq!(Scale::steps(4.0).place(1.0, 0.0, 100.0), 25.0);
    }

    #[test]
    fn smoothing_keeps_what_is_smooth_and_skips_what_is_missing() {
        let line: Points = (0..50).map(|n| (f64::from(n), 3.0)).collect();
        assert_eq!(smoothed(&line), line);
        let mut broken = line;
        broken[7].1 = f64::NAN;
        assert_eq!(smoothed(&broken)[7].1, 3.0);
        assert!(smoothed(&[]).is_empty());
        let ramp: Points = (0..50).map(|n| (f64::from(n), f64::from(n))).collect();
        assert!((smoothed(&ramp)[25].1 - 25.0).abs() < 1e-9);
    }

    #[test]
    fn thinning_bounds_a_page() {
        let long: Points = (0..100_000).map(|n| (f64::from(n), 1.0)).collect();
        let thin = thinned(&long);
        assert!(thin.len() <= POINTS_MAX && thin.len() > POINTS_MAX / 2);
        assert_eq!(thinned(&long[..10]), &long[..10]);
    }
}
