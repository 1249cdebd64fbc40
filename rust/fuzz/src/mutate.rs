//! Mutations for toolchains without coverage guidance: small damage to valid inputs, reproducible from a number.

/// SplitMix64 (Steele, Lea and Flood 2014): a generator whose whole state is the seed.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// What parsers stumble over: numbers at the edges, brackets, separators, escapes, varints, percent signs.
const TOKENS: [&[u8]; 34] = [
    b"0",
    b"-1",
    b"-0",
    b"1e999",
    b"1e-999",
    b"128",
    b"65536",
    b"2147483648",
    b"9223372036854775808",
    b"18446744073709551616",
    b"null",
    b"true",
    b"NaN",
    b"[",
    b"]",
    b"[]",
    b"{",
    b"}",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\ud800",
    b" ",
    b"\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x0a",
    b"\x0b",
    b"\x3a\x00",
    b"%",
    b"%2F",
    b"/",
    b"\0\0\0\0",
];

const LEN_MAX: usize = 1 << 14;

/// A damaged copy of one of the seeds, of which there is at least one.
pub fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = random.pick(seeds).clone();
    for _ in 0..=random.below(6) {
        damage(&mut input, seeds, random);
    }
    input.truncate(LEN_MAX);
    input
}

fn damage(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(9)).min(input.len());
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.below(256) as u8,
        2 if at < input.len() => input[at] = input[at].wrapping_add(1),
        3 => drop(input.drain(at..end)),
        4 => input.truncate(at),
        5 => drop(input.splice(at..end, random.pick(&TOKENS).iter().copied())),
        6 => drop(input.splice(at..at, random.pick(&TOKENS).iter().copied())),
        7 => {
            let copy = input[at..end].repeat(1 + random.below(40));
            drop(input.splice(at..at, copy));
        }
        8 => {
            let other = random.pick(seeds);
            let from = random.below(other.len() + 1);
            drop(input.splice(at.., other[from..].iter().copied()));
        }
        _ => input.push(random.below(256) as u8),
    }
}
