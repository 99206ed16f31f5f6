//! Lines that are hard on tokenizers, the same ones for a seed: words of many scripts, code, emoji, runs of white
//! space, digits, control characters, look-alikes of special tokens, and characters from all over Unicode.

/// A small generator with a published sequence (Steele, Lea and Flood 2014, "SplitMix"), so that the lines do not
/// change with a dependency.
pub(crate) struct SplitMix(pub u64);

impl SplitMix {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform enough below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of `items`.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// `num_lines` lines of the corpus with this seed. None holds U+2581, which SentencePiece takes for a space.
pub(crate) fn lines(seed: u64, num_lines: usize) -> Vec<String> {
    let mut rng = SplitMix(seed);
    (0..num_lines).map(|index| line(&mut rng, index % NUM_KINDS)).collect()
}

const NUM_KINDS: usize = 10;

fn line(rng: &mut SplitMix, kind: usize) -> String {
    let num_parts = 1 + rng.below(14);
    match kind {
        0 => sentence(rng, num_parts),
        1 => repeat(rng, num_parts, |rng| rng.pick(CODE).to_owned() + rng.pick(SPACES)),
        2 => repeat(rng, num_parts, |rng| rng.pick(EMOJI).to_owned() + rng.pick(&["", "", " ", "!", "x"])),
        3 => repeat(rng, num_parts, |rng| spaces(rng) + rng.pick(WORDS)) + &spaces(rng),
        4 => repeat(rng, num_parts, number),
        5 => repeat(rng, num_parts, |rng| rng.pick(WORDS).to_owned() + &char::from(rng.below(32) as u8).to_string()),
        6 => repeat(rng, 4 * num_parts, |rng| any_char(rng).to_string()),
        7 => repeat(rng, num_parts, |rng| rng.pick(WORDS).to_owned() + rng.pick(ENDINGS) + rng.pick(SPACES)),
        8 => repeat(rng, num_parts, |rng| rng.pick(SPECIAL).to_owned() + rng.pick(SPACES) + rng.pick(WORDS)),
        _ => repeat(rng, num_parts, |rng| rng.pick(REPEATED).repeat(1 + rng.below(40))),
    }
}

fn repeat(rng: &mut SplitMix, times: usize, mut part: impl FnMut(&mut SplitMix) -> String) -> String {
    (0..times).map(|_| part(rng)).collect()
}

fn sentence(rng: &mut SplitMix, num_words: usize) -> String {
    let words: Vec<&str> = (0..num_words).map(|_| rng.pick(WORDS)).collect();
    words.join(rng.pick(&[" ", " ", " ", ", ", "-", "", "\n"])) + rng.pick(&["", ".", "?", "!", "…", "。"])
}

fn spaces(rng: &mut SplitMix) -> String {
    rng.pick(SPACES).repeat(rng.below(36))
}

fn number(rng: &mut SplitMix) -> String {
    let digits = rng.pick(&["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "²³¹½¾Ⅳ①㊿೬௧"]);
    let digits: Vec<char> = digits.chars().collect();
    let text: String = (0..1 + rng.below(9)).map(|_| digits[rng.below(digits.len())]).collect();
    text + rng.pick(&["", " ", ".", ",", "%", "e-7", " km", "x", "\t"])
}

/// Mostly assigned blocks, now and then anything at all.
fn any_char(rng: &mut SplitMix) -> char {
    let (first, last) = BLOCKS[rng.below(BLOCKS.len())];
    loop {
        let code = first + rng.below((last - first + 1) as usize) as u32;
        if let Some(c) = char::from_u32(code).filter(|c| *c != '\u{2581}') {
            return c;
        }
    }
}

const BLOCKS: &[(u32, u32)] = &[
    (0x20, 0x7e),
    (0x20, 0x7e),
    (0xa0, 0x17f),
    (0x300, 0x36f),
    (0x370, 0x3ff),
    (0x400, 0x4ff),
    (0x590, 0x5ff),
    (0x600, 0x6ff),
    (0x900, 0x97f),
    (0xe00, 0xe7f),
    (0x1100, 0x11ff),
    (0x2000, 0x206f),
    (0x2190, 0x23ff),
    (0x2500, 0x257f),
    (0x3040, 0x30ff),
    (0x4e00, 0x9fff),
    (0xac00, 0xd7a3),
    (0xe000, 0xe0ff),
    (0xfb00, 0xfb4f),
    (0xfe00, 0xfe2f),
    (0xff00, 0xffef),
    (0x1d400, 0x1d4ff),
    (0x1f300, 0x1f6ff),
    (0x20000, 0x200ff),
    (0xe0100, 0xe01ef),
    (0x0, 0x3ffff),
    (0x10_0000, 0x10_ffff),
];

const WORDS: &[&str] = &[
    "the",
    "The",
    "THE",
    "token",
    "stream",
    "unbelievable",
    "don't",
    "I'll",
    "WE'RE",
    "naïve",
    "café",
    "o'clock",
    "rock'n'roll",
    "straße",
    "Über",
    "größer",
    "señor",
    "mañana",
    "coração",
    "façade",
    "œuvre",
    "žluťoučký",
    "kůň",
    "zażółć",
    "gęślą",
    "İstanbul",
    "ığdır",
    "привет",
    "мир",
    "Ёлка",
    "український",
    "ελληνικά",
    "Αθήνα",
    "שלום",
    "עולם",
    "مرحبا",
    "العالم",
    "فارسی",
    "हिन्दी",
    "नमस्ते",
    "বাংলা",
    "தமிழ்",
    "ไทย",
    "สวัสดีครับ",
    "ភាសាខ្មែរ",
    "မြန်မာ",
    "ქართული",
    "հայերեն",
    "አማርኛ",
    "日本語",
    "こんにちは",
    "カタカナ",
    "漢字",
    "你好",
    "世界",
    "繁體中文",
    "한국어",
    "안녕하세요",
    "e\u{301}",
    "a\u{30a}\u{327}",
    "ﬁ",
    "Ǆ",
    "ᏣᎳᎩ",
    "𝕱𝖗𝖆𝖐",
    "𐍈",
    "ꙮ",
    "x",
    "Q",
    "zzzz",
    "antidisestablishmentarianism",
];

const CODE: &[&str] = &[
    "fn main() {",
    "}",
    "    let x = vec![1, 2, 3];",
    "\tif (a != b) {",
    "for(int i=0;i<10;++i)",
    "def f(x, *args):",
    "        return x**2  # square",
    "SELECT * FROM t WHERE id=42;",
    "<div class=\"a\">",
    "</div>",
    "{\"key\": [null, 1e-9]}",
    "0xDEADBEEF",
    "http://example.com/?q=a&b=c#d",
    "/* comment */",
    "#include <stdio.h>",
    "@decorator",
    "$HOME/.config",
    "a->b.c::<T>()",
    "\\n\\t\\\\",
    "=> ==> === !== <= >=",
    "x=>x+1",
    "```rust",
    "- [ ] todo",
    "| a | b |",
    "'''",
    "r\"\\d+\"",
    "UPPER_SNAKE",
    "camelCaseName",
    "kebab-case-name",
    "C:\\Users\\x",
    "1..=9",
    "&mut self",
];

const EMOJI: &[&str] = &[
    "😀",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪",
    "🇯🇵🇫🇷",
    "❤️",
    "❤",
    "🤷🏻‍♀️",
    "1️⃣",
    "☺︎",
    "🧑‍💻",
    "🫠",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "✨",
    "→",
    "™",
    "©️",
    "🀄",
    "👩🏿‍🚀",
];

const SPACES: &[&str] = &[
    " ", " ", " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", " \n", "\u{a0}", "\u{3000}", "\u{2009}", "\u{85}",
    "\u{200b}", "\u{b}", "",
];

const ENDINGS: &[&str] = &[
    "'s", "'S", "'t", "'re", "'VE", "'m", "'ll", "'D", "’s", "'", "\"", "...", "!?", "–", "—", ")", "(", "«", "»",
    "。", "、", "؟", ":",
];

const SPECIAL: &[&str] = &[
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_end",
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<pad>",
    "<0x0A>",
    "<0x41>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "[multimodal]",
    "<unused7>",
    "<repo_name>",
    "<table>",
    "</b>",
    "[INST]",
    "<|eot_id|>",
    "<mask>",
    "<<",
    "<|",
];

const REPEATED: &[&str] = &[
    "a", "ab", " ", "\n", "\t", "=", "-", "─", "0", "7", "é", "日", "😀", "!", "A", "Ж", "\u{301}", "aA", ". ", "\r\n",
];
