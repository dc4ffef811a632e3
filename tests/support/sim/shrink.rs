//! Shrinking: the shortest list that still fails.

/// Cuts out of a list that fails whatever it fails without: delta debugging (Zeller, 1999), first
/// halves, then smaller and smaller pieces, down to single items.
///
/// The result still fails, and cutting out any one item of it makes it pass.
pub fn shrink<T: Clone>(mut items: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut piece = items.len().div_ceil(2);
    while piece > 0 && !items.is_empty() {
        let mut start = 0;
        let mut has_cut = false;
        while start < items.len() {
            let end = (start + piece).min(items.len());
            let without = [&items[..start], &items[end..]].concat();
            if fails(&without) {
                items = without;
                has_cut = true;
            } else {
                start = end;
            }
        }
        // What is cut late may have been all that kept an earlier item necessary.
        if !(piece == 1 && has_cut) {
            piece /= 2;
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_what_it_takes_to_fail() {
        let needs_both = |items: &[u32]| items.contains(&17) && items.contains(&83);
        assert_eq!(shrink((0..100).collect(), needs_both), [17, 83]);
    }

    #[test]
    fn a_list_that_fails_by_its_length_keeps_that_length() {
        assert_eq!(shrink((0..100).collect(), |items: &[u32]| items.len() > 6).len(), 7);
    }

    #[test]
    fn what_always_fails_needs_nothing() {
        assert!(shrink(vec![1, 2, 3], |_| true).is_empty());
    }
}
