//! Pure: a map by text that takes little memory while it has few entries.

/// Entries in the order of their keys. Adding or removing one moves those after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SortedMap<V>(Vec<(Box<str>, V)>);

impl<V> Default for SortedMap<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> SortedMap<V> {
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(key))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        self.find(key).ok().map(|index| &self.0[index].1)
    }

    /// The value of `key`, which is added if it is absent.
    pub(super) fn get_or_default(&mut self, key: &str) -> &mut V
    where
        V: Default,
    {
        let index = self.find(key).unwrap_or_else(|index| {
            reserve_first(&mut self.0);
            self.0.insert(index, (key.into(), V::default()));
            index
        });
        &mut self.0[index].1
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Ok(index) = self.find(key) {
            self.0.remove(index);
        }
    }

    /// The entry with the greatest key that is not greater than `key`.
    pub(super) fn last_up_to(&self, key: &str) -> Option<(&str, &V)> {
        let after = self.0.partition_point(|(other, _)| **other <= *key);
        let (key, value) = self.0.get(after.checked_sub(1)?)?;
        Some((key, value))
    }
}

impl<V> FromIterator<(Box<str>, V)> for SortedMap<V> {
    /// Of entries with the same key, the last one stays.
    fn from_iter<I: IntoIterator<Item = (Box<str>, V)>>(entries: I) -> Self {
        let sorted = std::collections::BTreeMap::from_iter(entries);
        Self(Vec::from_iter(sorted))
    }
}

/// Makes room for one element in an empty vector, which would otherwise begin with room for four.
pub(super) fn reserve_first<T>(vector: &mut Vec<T>) {
    if vector.is_empty() {
        vector.reserve_exact(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_has_what_a_tree_has(changes in proptest::collection::vec(("[ab]{0,3}", any::<bool>()), 0..40), key in "[abc]{0,4}") {
            let (mut map, mut tree) = (SortedMap::<usize>::default(), BTreeMap::<String, usize>::new());
            for (number, (key, is_added)) in changes.into_iter().enumerate() {
                if is_added {
                    *map.get_or_default(&key) += number;
                    *tree.entry(key).or_default() += number;
                } else {
                    map.remove(&key);
                    tree.remove(&key);
                }
            }
            prop_assert_eq!(map.is_empty(), tree.is_empty());
            prop_assert_eq!(map.get(&key), tree.get(&key));
            let up_to = (Bound::Unbounded, Bound::Included(key.as_str()));
            let last = tree.range::<str, _>(up_to).next_back().map(|(key, value)| (key.as_str(), value));
            prop_assert_eq!(map.last_up_to(&key), last);
            let same = tree.iter().map(|(key, value)| (key.as_str().into(), *value));
            prop_assert_eq!(map, same.collect::<SortedMap<_>>());
        }
    }
}
