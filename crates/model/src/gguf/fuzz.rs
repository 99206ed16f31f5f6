//! Random damage to valid files. For any bytes, the validator returns either a header whose tensors all lie in the
//! file, or an error with a useful message. It neither panics nor allocates much memory.
//!
//! `TALLOW_FUZZ_CASES` sets the number of cases of the long loop; a failure prints the seed, which replays it with
//! `TALLOW_FUZZ_SEED`.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::header::Header;
use super::malformed::valid;

/// Cases of the long loop if the environment does not set a number; they take a second or two.
const CASES_DEFAULT: u64 = 50_000;
/// Growth of the address space that the long loop may cause. Files here have less than 2 KB, so a count that is trusted
/// before its bytes are checked would show as gigabytes.
const ADDRESS_SPACE_GROWTH_KB_MAX: u64 = 256 << 10;

/// Checks the rule that must hold for any bytes.
fn check(bytes: &[u8]) -> Result<(), String> {
    match Header::parse(bytes) {
        Err(e) if e.message().len() < 8 => Err(format!("says too little: {e}")),
        Err(_) => Ok(()),
        Ok(header) => {
            let mut ranges: Vec<_> = header.tensors.iter().map(|t| (t.data_range(), t)).collect();
            ranges.sort_by_key(|(range, _)| range.start);
            for (range, t) in &ranges {
                let rows: usize = t.dims[..t.dims.len() - 1].iter().product();
                if range.end > bytes.len() || range.len() != rows * t.row_bytes() || t.num_elements() == 0 {
                    return Err(format!("tensor {t:?} was accepted in {} bytes", bytes.len()));
                }
            }
            match ranges.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
                Some(pair) => Err(format!("{:?} and {:?} overlap", pair[0].1, pair[1].1)),
                None => Ok(()),
            }
        }
    }
}

/// One piece of damage. Places are taken modulo the length of the bytes.
#[derive(Debug, Clone)]
enum Damage {
    Byte {
        at: usize,
        value: u8,
    },
    Number {
        at: usize,
        value: u64,
        width: usize,
    },
    Truncate {
        at: usize,
    },
    Remove {
        at: usize,
        len: usize,
    },
    /// Inserts a copy of some bytes at another place, so that whole fields appear where others belong.
    Copy {
        from: usize,
        to: usize,
        len: usize,
    },
}

/// Numbers at which arithmetic breaks.
const NUMBERS: [u64; 16] = [
    0,
    1,
    5,
    8,
    9,
    31,
    33,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 32,
    1 << 61,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let len_before = bytes.len();
    match *damage {
        Damage::Byte { at, value } => bytes[at % len_before] = value,
        Damage::Number { at, value, width } => {
            let at = at % len_before;
            let width = width.min(len_before - at);
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        Damage::Truncate { at } => bytes.truncate(at % len_before),
        Damage::Remove { at, len } => {
            let at = at % len_before;
            bytes.drain(at..len_before.min(at + len));
        }
        Damage::Copy { from, to, len } => {
            let from = from % len_before;
            let copied = bytes[from..len_before.min(from + len)].to_vec();
            let to = to % len_before;
            bytes.splice(to..to, copied);
        }
    }
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let at = || any::<usize>();
    let number = prop_oneof![prop::sample::select(NUMBERS.to_vec()), any::<u64>()];
    let width = prop::sample::select(vec![1_usize, 2, 4, 8]);
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, value)| Damage::Byte { at, value }),
        4 => (at(), number, width).prop_map(|(at, value, width)| Damage::Number { at, value, width }),
        1 => at().prop_map(|at| Damage::Truncate { at }),
        1 => (at(), 1..64_usize).prop_map(|(at, len)| Damage::Remove { at, len }),
        1 => (at(), at(), 1..64_usize).prop_map(|(from, to, len)| Damage::Copy { from, to, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_files_are_answered(damages in prop::collection::vec(any_damage(), 1..6)) {
        let mut bytes = valid().build();
        damages.iter().for_each(|d| apply(&mut bytes, d));
        prop_assert_eq!(check(&bytes), Ok(()));
    }

    #[test]
    fn random_bytes_behind_a_right_beginning_are_answered(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = [&b"GGUF\x03\0\0\0"[..], &[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
        bytes.extend(tail);
        prop_assert_eq!(check(&bytes), Ok(()));
    }
}

#[test]
fn a_long_run_of_damage_neither_panics_nor_takes_memory() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seed = number("TALLOW_FUZZ_SEED");
    let cases = if seed.is_some() { 1 } else { number("TALLOW_FUZZ_CASES").unwrap_or(CASES_DEFAULT) };
    let first = seed.unwrap_or(0);
    let whole = valid().build();
    let before = address_space_kb();
    let mut accepted = 0_u64;
    for seed in first..first + cases {
        let bytes = damaged(&whole, seed);
        // The panic is caught because its own message would not name the seed.
        let outcome = std::panic::catch_unwind(|| check(&bytes));
        assert!(matches!(outcome, Ok(Ok(()))), "TALLOW_FUZZ_SEED={seed}: {outcome:?}");
        accepted += u64::from(Header::parse(&bytes).is_ok());
    }
    println!("{cases} damaged files from seed {first} on, {accepted} of them still valid");
    match (before, address_space_kb()) {
        (Some(before), Some(after)) => {
            let growth = after - before;
            assert!(growth <= ADDRESS_SPACE_GROWTH_KB_MAX, "the address space grew by {growth} kB");
        }
        _ => println!("skipped: this system does not tell the size of the address space"),
    }
}

/// The file `whole` with one to four pieces of damage that follow from `seed`.
fn damaged(whole: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut bytes = whole.to_vec();
    for _ in 0..=next() % 4 {
        let (at, other) = (next() as usize, next());
        let damage = match next() % 12 {
            0..4 => Damage::Byte { at, value: other as u8 },
            4..9 => Damage::Number { at, value: NUMBERS[other as usize % NUMBERS.len()], width: 1 << (next() % 4) },
            9 => Damage::Truncate { at },
            10 => Damage::Remove { at, len: other as usize % 64 },
            _ => Damage::Copy { from: at, to: other as usize, len: next() as usize % 64 },
        };
        apply(&mut bytes, &damage);
    }
    bytes
}

/// The greatest size that this process ever had, reserved memory included.
fn address_space_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
