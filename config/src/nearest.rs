//! What was probably meant.

/// The candidate that `written` is probably a misspelling of.
///
/// A candidate of very different length is passed over unmeasured, so that the cost does not grow
/// with what the user wrote.
pub(crate) fn nearest<'a>(
    written: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let distance = |candidate: &'a str| {
        let tolerance = candidate.len().div_ceil(3);
        if written.len().abs_diff(candidate.len()) > tolerance {
            return None;
        }
        let distance = strsim::osa_distance(&written.to_lowercase(), &candidate.to_lowercase());
        (distance <= tolerance).then_some((distance, candidate))
    };
    candidates
        .filter_map(distance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, nearest)| nearest)
}
