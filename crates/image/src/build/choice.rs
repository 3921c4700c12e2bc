//! Which blocks of the base become the reference of a frame: greedily those with most votes that no block taken before has.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::search::WEIGHT_OF_UNIQUE;
use crate::pack::BlockRange;

/// Longest gap between two taken runs that is taken too, in blocks: tables of addresses in executables change everywhere at
/// once, and are about this long.
const FILLED_GAP: u64 = 64;
/// Votes that say that a block is where a part of the frame comes from.
const CLEAR_SCORE: u64 = 4 * WEIGHT_OF_UNIQUE as u64;
/// Votes below which a block is not worth reading on the node.
const SLIGHT_SCORE: u64 = WEIGHT_OF_UNIQUE as u64;

/// A sample of the frame that lies in a block of the base.
pub(super) type Vote = (u32, u32);

/// Chooses ranges, ascending and apart, of at most `budget` blocks together. `votes` are (block, sample), sorted; `weights` has a
/// weight for each sample.
pub(super) fn choose(votes: &[Vote], weights: Vec<u32>, base_blocks: u64, budget: u64) -> Vec<BlockRange> {
    let by_block: Vec<&[Vote]> = votes.chunk_by(|a, b| a.0 == b.0).collect();
    let mut choice = Choice::new(base_blocks, budget);
    let mut candidates = Candidates::new(&by_block, weights);
    // What clearly is the frame's own past, then what lies in between without votes, then what merely shares something.
    candidates.take_down_to(CLEAR_SCORE, &mut choice);
    choice.fill_gaps();
    candidates.take_down_to(SLIGHT_SCORE, &mut choice);
    choice.into_ranges()
}

/// Blocks with votes, the best on top.
struct Candidates<'a> {
    by_block: &'a [&'a [Vote]],
    weights: Vec<u32>,
    heap: BinaryHeap<(u64, Reverse<u32>)>,
}

impl<'a> Candidates<'a> {
    fn new(by_block: &'a [&'a [Vote]], weights: Vec<u32>) -> Self {
        let mut candidates = Self { by_block, weights, heap: BinaryHeap::new() };
        candidates.heap =
            by_block.iter().zip(0_u32..).map(|(votes, at)| (candidates.score(votes), Reverse(at))).collect();
        candidates
    }

    fn score(&self, votes: &[Vote]) -> u64 {
        let weight = |(_, sample): &Vote| self.weights.get(*sample as usize).copied().map_or(0, u64::from);
        votes.iter().map(weight).sum()
    }

    /// Takes the best block as long as its score is at least `least` and there is room. Scores only fall, so a block whose
    /// score is still on top after a second look is the best one.
    fn take_down_to(&mut self, least: u64, choice: &mut Choice) {
        while let Some((stale, Reverse(at))) = self.heap.pop() {
            let Some(votes) = self.by_block.get(at as usize) else { continue };
            let now = self.score(votes);
            if now < stale && now >= SLIGHT_SCORE {
                self.heap.push((now, Reverse(at)));
                continue;
            }
            if now < least {
                // Kept for a later round that takes less.
                if now >= SLIGHT_SCORE {
                    self.heap.push((now, Reverse(at)));
                    return;
                }
                continue;
            }
            let block = votes.first().map_or(0, |(block, _)| u64::from(*block));
            if !choice.take(block.saturating_sub(1), block + 2) {
                return;
            }
            for (_, sample) in votes.iter() {
                if let Some(weight) = self.weights.get_mut(*sample as usize) {
                    *weight = 0;
                }
            }
        }
    }
}

/// The blocks taken so far: maximal runs, never more than the budget.
struct Choice {
    base_blocks: u64,
    left: u64,
    /// First block of a run to the block after it.
    runs: BTreeMap<u64, u64>,
}

impl Choice {
    fn new(base_blocks: u64, budget: u64) -> Self {
        Self { base_blocks, left: budget, runs: BTreeMap::new() }
    }

    /// Takes the blocks from `first` up to `end`; false if there is no room for those that are new.
    fn take(&mut self, first: u64, end: u64) -> bool {
        let (mut first, mut end) = (first, end.min(self.base_blocks));
        let overlapping = |runs: &BTreeMap<u64, u64>, first, end| -> Vec<(u64, u64)> {
            let from = runs.range(..=first).next_back().map_or(first, |(start, _)| *start);
            runs.range(from..=end)
                .filter(|(_, run_end)| **run_end >= first)
                .map(|(start, end)| (*start, *end))
                .collect()
        };
        let touched = overlapping(&self.runs, first, end);
        let known: u64 =
            touched.iter().map(|(start, run_end)| run_end.min(&end).saturating_sub(*start.max(&first))).sum();
        let new = (end - first) - known;
        if new > self.left {
            return false;
        }
        self.left -= new;
        for (start, run_end) in touched {
            self.runs.remove(&start);
            (first, end) = (first.min(start), end.max(run_end));
        }
        self.runs.insert(first, end);
        true
    }

    /// Takes what lies between two runs, the smallest gap first: what changed too much to have votes is still alike, and lies
    /// between its neighbours as before.
    fn fill_gaps(&mut self) {
        let gaps = self.runs.iter().zip(self.runs.keys().skip(1)).map(|((_, end), next)| (next - end, *end, *next));
        let mut gaps: Vec<(u64, u64, u64)> = gaps.filter(|(gap, _, _)| *gap <= FILLED_GAP).collect();
        gaps.sort_unstable();
        for (_, first, end) in gaps {
            if !self.take(first, end) {
                return;
            }
        }
    }

    fn into_ranges(self) -> Vec<BlockRange> {
        let range = |(first, end): (u64, u64)| BlockRange { first: first as u32, count: (end - first) as u32 };
        self.runs.into_iter().map(range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> BlockRange {
        BlockRange { first, count }
    }

    /// Votes of `samples` samples for one block, from sample `from` on.
    fn votes(block: u32, from: u32, samples: u32) -> Vec<Vote> {
        (from..from + samples).map(|sample| (block, sample)).collect()
    }

    #[test]
    fn neighbours_and_gaps_are_taken_and_the_budget_holds() {
        let all = [votes(10, 0, 9), votes(30, 9, 9), votes(200, 18, 9)].concat();
        let weights = vec![WEIGHT_OF_UNIQUE; 27];
        assert_eq!(choose(&all, weights.clone(), 202, 1000), [range(9, 23), range(199, 3)]);
        // Room for the three blocks with their neighbours, not for the gap.
        assert_eq!(choose(&all, weights.clone(), 202, 9), [range(9, 3), range(29, 3), range(199, 3)]);
        assert_eq!(choose(&all, weights, 202, 2), []);
    }

    #[test]
    fn a_second_copy_of_the_same_content_is_not_taken() {
        let all = [votes(10, 0, 9), votes(500, 0, 8)].concat();
        assert_eq!(choose(&all, vec![WEIGHT_OF_UNIQUE; 9], 1000, 1000), [range(9, 3)]);
        let with_news = [votes(10, 0, 9), votes(500, 0, 10)].concat();
        assert_eq!(choose(&with_news, vec![WEIGHT_OF_UNIQUE; 10], 1000, 1000), [range(499, 3)]);
    }

    #[test]
    fn overlapping_runs_become_one_and_count_once() {
        let mut choice = Choice::new(100, 10);
        assert!(choice.take(5, 8) && choice.take(7, 10) && choice.take(0, 3) && choice.take(6, 9));
        assert_eq!(choice.left, 2);
        assert!(choice.take(3, 5));
        assert!(!choice.take(50, 51));
        assert_eq!(choice.into_ranges(), [range(0, 10)]);
    }
}
