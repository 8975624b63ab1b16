//! Whether a resource grows. Pure.

use crate::report::median;

/// The growth of `values`, which were sampled at equal intervals: the ratio of the medians of the last and the first third. A median
/// ignores short peaks, and a steady leak raises it by two thirds of all that leaked. NaN for fewer than three values.
pub(crate) fn growth(values: &[f64]) -> f64 {
    let third = values.len() / 3;
    if third == 0 {
        return f64::NAN;
    }
    let first = median(values[..third].iter().copied());
    let last = median(values[values.len() - third..].iter().copied());
    last / first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_leak_is_growth_and_peaks_are_not() {
        let noise = |n: usize| {
            if n.is_multiple_of(10) {
                500.0
            } else {
                (n * 7 % 5) as f64
            }
        };
        let steady: Vec<f64> = (0..540).map(|n| 15_000.0 + noise(n)).collect();
        assert!((0.999..1.001).contains(&growth(&steady)), "{}", growth(&steady));
        // 3 KiB a second of 15 MiB.
        let leak: Vec<f64> = (0..540).map(|n| 15_000.0 + noise(n) + 3.0 * n as f64).collect();
        assert!((1.06..1.08).contains(&growth(&leak)), "{}", growth(&leak));
        assert!(growth(&[1.0, 2.0]).is_nan());
    }
}
