//! Checks the pool against a simple model without lists: a reference count and a content per block, and a clock for the
//! LRU.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

fn tokens(n: usize, salt: u32) -> Vec<TokenId> {
    (0..n as u32).map(|i| i * 31 + salt).collect()
}

/// Takes blocks for all of `tokens` and names the full ones.
fn compute(pool: &mut BlockPool, tenant: Tenant, tokens: &[TokenId]) -> Option<Vec<BlockId>> {
    let chain = HashChain::new(tenant, tokens);
    let mut table = Vec::new();
    let num_hits = pool.take_prefix(tenant, tokens, &chain, &mut table);
    for index in num_hits..tokens.len().div_ceil(BLOCK_SIZE) {
        let Some(id) = pool.allocate() else {
            pool.release_all(&mut table);
            return None;
        };
        table.push(id);
        if (index + 1) * BLOCK_SIZE <= tokens.len() {
            pool.register(id, tenant, tokens, &chain, index);
        }
    }
    Some(table)
}

fn hits(pool: &BlockPool, tenant: Tenant, tokens: &[TokenId]) -> usize {
    pool.find_prefix(tenant, tokens, &HashChain::new(tenant, tokens)).num_blocks
}

#[test]
fn a_released_prefix_is_found_again_and_its_last_token_never() {
    let mut pool = BlockPool::new(8);
    let prompt = tokens(3 * BLOCK_SIZE, 1);
    let mut table = compute(&mut pool, Tenant(0), &prompt).expect("room");
    assert_eq!(hits(&pool, Tenant(0), &prompt), 2, "the third block holds the last token");
    let longer = [prompt.clone(), vec![5]].concat();
    assert_eq!(hits(&pool, Tenant(0), &longer), 3);
    let taken = table.clone();
    pool.release_all(&mut table);
    assert_eq!((pool.num_cached(), pool.num_available()), (3, 8));
    assert_eq!(compute(&mut pool, Tenant(0), &longer).expect("room")[..3], taken[..]);
}

#[test]
fn another_tenant_finds_nothing() {
    let mut pool = BlockPool::new(8);
    let prompt = tokens(100, 1);
    compute(&mut pool, Tenant(1), &prompt).expect("room");
    assert_eq!(hits(&pool, Tenant(1), &prompt), 3);
    assert_eq!(hits(&pool, Tenant(2), &prompt), 0);
}

#[test]
fn a_hit_with_the_right_hash_and_other_tokens_is_refused() {
    let mut pool = BlockPool::new(4);
    let prompt = tokens(40, 1);
    compute(&mut pool, Tenant(0), &prompt).expect("room");
    let chain = HashChain::new(Tenant(0), &prompt);
    let other = tokens(40, 2);
    assert_eq!(pool.find_prefix(Tenant(0), &other, &chain), PrefixHit::default());
    assert_eq!(pool.find_prefix(Tenant(9), &prompt, &chain), PrefixHit::default());
}

#[test]
fn the_longest_unused_is_taken_first_and_of_a_prefix_the_end() {
    let mut pool = BlockPool::new(6);
    let (old, new) = (tokens(65, 1), tokens(65, 2));
    let mut a = compute(&mut pool, Tenant(0), &old).expect("room");
    let mut b = compute(&mut pool, Tenant(0), &new).expect("room");
    pool.release_all(&mut a);
    pool.release_all(&mut b);
    // The two unnamed blocks are taken first, then the end of the old prefix.
    for _ in 0..3 {
        pool.allocate().expect("room");
    }
    assert_eq!((hits(&pool, Tenant(0), &old), hits(&pool, Tenant(0), &new)), (1, 2));
}

#[test]
fn equal_content_computed_twice_has_one_name() {
    let mut pool = BlockPool::new(4);
    let prompt = tokens(33, 1);
    let chain = HashChain::new(Tenant(0), &prompt);
    let ids = [pool.allocate().expect("room"), pool.allocate().expect("room")];
    for id in ids {
        pool.register(id, Tenant(0), &prompt, &chain, 0);
    }
    let tables = [vec![ids[0]], vec![ids[1]]];
    pool.check(tables.iter().map(Vec::as_slice));
    assert!(!pool.is_writable(ids[0]) && pool.is_writable(ids[1]));
}

#[test]
#[should_panic(expected = "released more often than taken")]
fn releasing_twice_is_a_bug() {
    let mut pool = BlockPool::new(1);
    let id = pool.allocate().expect("room");
    pool.release(id);
    pool.release(id);
}

/// The obvious implementation: contents as lists of (tenant, all tokens up to the block's end).
#[derive(Default)]
struct Naive {
    ref_counts: Vec<u32>,
    contents: Vec<Option<(u64, Vec<TokenId>)>>,
    freed_at: Vec<i64>,
    clock: i64,
}

impl Naive {
    fn new(n: usize) -> Self {
        let freed_at = (0..n as i64).collect();
        Self { ref_counts: vec![0; n], contents: vec![None; n], freed_at, clock: n as i64 }
    }

    fn allocate(&mut self) -> Option<usize> {
        let free = (0..self.ref_counts.len()).filter(|&i| self.ref_counts[i] == 0);
        let id = free.min_by_key(|&i| self.freed_at[i])?;
        (self.ref_counts[id], self.contents[id]) = (1, None);
        Some(id)
    }

    fn release(&mut self, id: usize) {
        self.ref_counts[id] -= 1;
        self.clock += 1;
        if self.ref_counts[id] == 0 {
            self.freed_at[id] = if self.contents[id].is_some() { self.clock } else { -self.clock };
        }
    }

    fn compute(&mut self, tenant: u64, tokens: &[TokenId]) -> Option<Vec<usize>> {
        let mut table = Vec::new();
        for end in (BLOCK_SIZE..tokens.len()).step_by(BLOCK_SIZE) {
            let content = Some((tenant, tokens[..end].to_vec()));
            let Some(id) = self.contents.iter().position(|c| *c == content) else { break };
            self.ref_counts[id] += 1;
            table.push(id);
        }
        for index in table.len()..tokens.len().div_ceil(BLOCK_SIZE) {
            let Some(id) = self.allocate() else {
                table.iter().rev().for_each(|&id| self.release(id));
                return None;
            };
            table.push(id);
            let content = Some((tenant, tokens[..tokens.len().min((index + 1) * BLOCK_SIZE)].to_vec()));
            if (index + 1) * BLOCK_SIZE <= tokens.len() && !self.contents.contains(&content) {
                self.contents[id] = content;
            }
        }
        Some(table)
    }
}

#[derive(Debug, Clone)]
enum Op {
    Join { tenant: u64, salt: u32, num_tokens: usize },
    Leave { which: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let join =
        (0..2u64, 0..3u32, 1..130usize).prop_map(|(tenant, salt, num_tokens)| Op::Join { tenant, salt, num_tokens });
    let leave = (0..8usize).prop_map(|which| Op::Leave { which });
    prop::collection::vec(prop_oneof![join, leave], 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn the_pool_does_what_the_obvious_one_does(num_blocks in 1..12usize, ops in ops()) {
        let (mut pool, mut naive) = (BlockPool::new(num_blocks), Naive::new(num_blocks));
        let mut tables: Vec<Vec<BlockId>> = Vec::new();
        for op in ops {
            match op {
                Op::Join { tenant, salt, num_tokens } => {
                    let tokens = tokens(num_tokens, salt);
                    let table = compute(&mut pool, Tenant(tenant), &tokens);
                    let expected = naive.compute(tenant, &tokens);
                    let ids = table.as_ref().map(|t| t.iter().map(|id| id.0 as usize).collect::<Vec<_>>());
                    prop_assert_eq!(ids, expected);
                    tables.extend(table);
                }
                Op::Leave { which } if !tables.is_empty() => {
                    let mut table = tables.swap_remove(which % tables.len());
                    table.iter().rev().for_each(|id| naive.release(id.0 as usize));
                    pool.release_all(&mut table);
                }
                Op::Leave { .. } => {}
            }
            pool.check(tables.iter().map(Vec::as_slice));
            let free = naive.ref_counts.iter().filter(|&&n| n == 0).count();
            prop_assert_eq!(pool.num_available(), free);
        }
    }
}
