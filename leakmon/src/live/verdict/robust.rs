//! Robust statistics of short series.
//!
//! In: points in the order of time. Out: a slope, a test for a trend. Neither is moved by a few odd points, and neither takes the
//! noise to be normal. Pure numbers: what they mean is the rules' business.

/// One value at a time in seconds.
pub(super) type Point = (f64, f64);

/// The Theil–Sen slope, units a second: the median of the slopes between all pairs of points. `None` for fewer than two
/// times. (P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968.)
pub(super) fn theil_sen(points: &[Point]) -> Option<f64> {
    let pairs = points
        .iter()
        .enumerate()
        .flat_map(|(index, late)| points[..index].iter().map(move |early| (early, late)));
    let mut slopes: Vec<f64> = pairs
        .filter(|(early, late)| late.0 > early.0)
        .map(|(early, late)| (late.1 - early.1) / (late.0 - early.0))
        .collect();
    let middle = slopes.len() / 2;
    if slopes.is_empty() {
        return None;
    }
    Some(*slopes.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// The Mann–Kendall test: how many standard deviations the count of rising pairs is above what chance would give; 0 where
/// nothing changes. The variance takes no account of ties, which makes it larger than it is and the test careful.
/// (M. G. Kendall, "Rank Correlation Methods", 1948.)
pub(super) fn mann_kendall(points: &[Point]) -> f64 {
    let mut rising = 0_i64;
    for (index, late) in points.iter().enumerate() {
        for early in &points[..index] {
            rising += i64::from(late.1 > early.1) - i64::from(late.1 < early.1);
        }
    }
    let n = points.len() as f64;
    let variance = n * (n - 1.0) * (2.0 * n + 5.0) / 18.0;
    if variance > 0.0 {
        rising as f64 / variance.sqrt()
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn series(values: &[f64]) -> Vec<Point> {
        values
            .iter()
            .enumerate()
            .map(|(index, value)| (index as f64, *value))
            .collect()
    }

    #[test]
    fn a_line_has_its_slope_whatever_one_point_says() {
        let mut points: Vec<Point> = (0..17).map(|x| (f64::from(x) * 4.0, f64::from(x) * 8.0)).collect();
        assert_eq!(theil_sen(&points), Some(2.0));
        points[8].1 = 1e9;
        assert_eq!(theil_sen(&points), Some(2.0));
        assert_eq!(theil_sen(&points[..1]), None);
        assert_eq!(theil_sen(&[(1.0, 1.0), (1.0, 5.0)]), None);
    }

    #[test]
    fn a_step_has_no_slope() {
        let step: Vec<f64> = (0..17).map(|x| if x < 12 { 3.0 } else { 90.0 }).collect();
        assert_eq!(theil_sen(&series(&step)), Some(0.0));
    }

    #[test]
    fn a_trend_is_told_from_its_absence() {
        let rising = mann_kendall(&series(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
        // S = 28, variance = 8·7·21/18.
        assert!((rising - 28.0 / (8.0 * 7.0 * 21.0 / 18.0_f64).sqrt()).abs() < 1e-12);
        assert_eq!(mann_kendall(&series(&[4.0; 9])), 0.0);
        assert_eq!(mann_kendall(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn turning_time_around_turns_the_sign_around(values in proptest::collection::vec(-100..100_i32, 2..24)) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let forward = series(&values);
            let backward = series(&values.iter().rev().copied().collect::<Vec<_>>());
            prop_assert!((mann_kendall(&forward) + mann_kendall(&backward)).abs() < 1e-9);
        }

        #[test]
        fn the_slope_lies_between_the_steepest(values in proptest::collection::vec(-100..100_i32, 2..24)) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let slope = theil_sen(&series(&values)).unwrap();
            let steps = values.windows(2).map(|pair| pair[1] - pair[0]);
            let (low, high) = steps.fold((f64::MAX, f64::MIN), |(low, high), step| (low.min(step), high.max(step)));
            prop_assert!(low <= slope && slope <= high);
        }
    }
}
