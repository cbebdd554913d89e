//! First-fit bookkeeping of one region, kept outside of it: no pointer of ours lies among secrets.

/// Granularity of a block; also its alignment.
pub(crate) const GRAIN: usize = 16;

#[derive(Debug)]
pub(crate) struct FreeList {
    /// Free spans (offset, length), sorted, never touching each other.
    spans: Vec<(usize, usize)>,
    size: usize,
}

impl FreeList {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            spans: vec![(0, size)],
            size,
        }
    }

    /// Takes `capacity` bytes (a multiple of [`GRAIN`]) and returns their offset.
    pub(crate) fn take(&mut self, capacity: usize) -> Option<usize> {
        let index = self
            .spans
            .iter()
            .position(|&(_, length)| length >= capacity)?;
        let (offset, length) = self.spans[index];
        if length == capacity {
            self.spans.remove(index);
        } else {
            self.spans[index] = (offset + capacity, length - capacity);
        }
        Some(offset)
    }

    /// Gives a block back and joins it with its free neighbours.
    pub(crate) fn give(&mut self, offset: usize, capacity: usize) {
        let index = self.spans.partition_point(|&(start, _)| start < offset);
        let joins_next = self
            .spans
            .get(index)
            .is_some_and(|&(start, _)| start == offset + capacity);
        let joins_previous = index
            .checked_sub(1)
            .is_some_and(|before| self.spans[before].0 + self.spans[before].1 == offset);
        match (joins_previous, joins_next) {
            (true, true) => {
                let (_, next) = self.spans.remove(index);
                self.spans[index - 1].1 += capacity + next;
            }
            (true, false) => self.spans[index - 1].1 += capacity,
            (false, true) => self.spans[index] = (offset, self.spans[index].1 + capacity),
            (false, false) => self.spans.insert(index, (offset, capacity)),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.size - self.spans.iter().map(|&(_, length)| length).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_space_comes_back(steps in prop::collection::vec((any::<bool>(), 1usize..12), 1..200)) {
            let size = 64 * GRAIN;
            let mut list = FreeList::new(size);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (give, amount) in steps {
                if give && !held.is_empty() {
                    let (offset, capacity) = held.swap_remove(amount % held.len());
                    list.give(offset, capacity);
                } else if let Some(offset) = list.take(amount * GRAIN) {
                    let end = offset + amount * GRAIN;
                    prop_assert!(end <= size);
                    prop_assert!(held.iter().all(|&(other, length)| end <= other || other + length <= offset));
                    held.push((offset, amount * GRAIN));
                }
                prop_assert_eq!(list.used(), held.iter().map(|&(_, length)| length).sum::<usize>());
            }
            for (offset, capacity) in held {
                list.give(offset, capacity);
            }
            prop_assert_eq!(list.spans, vec![(0, size)]);
        }
    }
}
