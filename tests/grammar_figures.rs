//! scratch
#[path = "common/real.rs"]
mod real;
use std::sync::Arc;
use std::time::Instant;
use tallow::model::gguf::Gguf;
use tallow::model::vocab::vocab_from_gguf;
use tallow::protocol::{Constraint, TokenId};
use tallow::sampling::grammar::{GrammarCompiler, GrammarLimits, Matcher, Next};
use tallow::sampling::random_u64;
use tallow::text::Tokenizer;

#[test]
#[ignore]
fn figures() {
    let path = real::path(real::SMOLLM2);
    let file = Gguf::open(&path).expect("the file opens");
    let tokenizer = Arc::new(Tokenizer::from_vocab(vocab_from_gguf(file.metadata()).expect("v")).expect("t"));
    let compiler = GrammarCompiler::new(tokenizer.clone(), GrammarLimits::default(), Arc::default());
    let only = std::env::var("ONLY").ok();
    for (name, constraint) in cases() {
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let began = Instant::now();
        let grammar = match compiler.compile(&constraint) {
            Ok(g) => g,
            Err(e) => {
                println!(
                    "{name:28} refused after {:.0} ms: {}",
                    began.elapsed().as_secs_f64() * 1e3,
                    e.message().chars().take(150).collect::<String>()
                );
                continue;
            }
        };
        let compile = began.elapsed().as_secs_f64() * 1e3;
        let (mut mask_ms, mut accept_ms, mut forced_ms, mut start_ms) = (0f64, 0f64, 0f64, 0f64);
        let (mut n, mut end) = (0, String::new());
        let mut masks = Vec::new();
        for seed in 0..4u64 {
            let t = Instant::now();
            let (mut m, _) = match Matcher::start(&grammar, &[], true) {
                Ok(x) => x,
                Err(e) => {
                    end = e.message().to_owned();
                    break;
                }
            };
            start_ms = start_ms.max(t.elapsed().as_secs_f64() * 1e3);
            for i in 0..200u64 {
                let t = Instant::now();
                let next = m.allowed();
                let ms = t.elapsed().as_secs_f64() * 1e3;
                mask_ms = mask_ms.max(ms);
                masks.push(ms);
                let mask = match next {
                    Ok(Next::Sample(mask)) => mask,
                    Ok(_) => {
                        end = "complete".into();
                        break;
                    }
                    Err(e) => {
                        end = format!("{i}: {}", e.message());
                        break;
                    }
                };
                let ids: Vec<TokenId> = (0..tokenizer.vocab_size() as u32).filter(|t| mask.contains(*t)).collect();
                // Long tokens: they have most rows.
                let mut pick = ids[random_u64(seed, i) as usize % ids.len()];
                for k in 0..8 {
                    let c = ids[random_u64(seed, i * 100 + k) as usize % ids.len()];
                    if seed % 2 == 0 && tokenizer.token_bytes(c).len() > tokenizer.token_bytes(pick).len() {
                        pick = c;
                    }
                }
                let t = Instant::now();
                let r = m.accept(pick);
                accept_ms = accept_ms.max(t.elapsed().as_secs_f64() * 1e3);
                if let Err(e) = r {
                    end = format!("{i}: accept: {}", e.message());
                    break;
                }
                let t = Instant::now();
                let r = m.forced();
                forced_ms = forced_ms.max(t.elapsed().as_secs_f64() * 1e3);
                if let Err(e) = r {
                    end = format!("{i}: forced: {}", e.message());
                    break;
                }
                n += 1;
            }
        }
        masks.sort_by(f64::total_cmp);
        println!(
            "{name:28} compile {compile:7.1} ms, {:7} B; start {start_ms:6.2}; mask max {mask_ms:8.2} med {:6.3}; accept {accept_ms:8.2}; forced {forced_ms:8.2}; {n} tokens; {}",
            grammar.num_bytes(),
            masks.get(masks.len() / 2).unwrap_or(&0.0),
            end.chars().take(140).collect::<String>()
        );
    }
}

fn lark(t: &str) -> Constraint {
    Constraint::Lark(t.to_owned())
}

fn cases() -> Vec<(&'static str, Constraint)> {
    let schema = |v: serde_json::Value| Constraint::JsonSchema(v.to_string());
    let props = |n: usize, required: bool| {
        let p: serde_json::Map<String, serde_json::Value> = (0..n)
            .map(|i| {
                (
                    format!("property_{i}"),
                    match i % 5 {
                        0 => serde_json::json!({"type": "string", "description": "a thing"}),
                        1 => serde_json::json!({"type": "integer", "minimum": 0, "maximum": 1000 + i}),
                        2 => serde_json::json!({"enum": ["a", "b", format!("c{i}")]}),
                        3 => serde_json::json!({"type": "array", "items": {"type": "string", "maxLength": 40 + i}}),
                        _ => serde_json::json!({"anyOf": [{"type": "null"}, {"type": "number"}]}),
                    },
                )
            })
            .collect();
        let names: Vec<String> = if required { p.keys().cloned().collect() } else { vec![] };
        serde_json::json!({"type": "object", "properties": p, "required": names, "additionalProperties": false})
    };
    let words = |n: usize| {
        (0..n)
            .map(|i| format!("{}-{}", ["alpha", "beta", "gamma", "delta item", "Épsilon"][i % 5], i * 7919 % 100_003))
            .collect::<Vec<_>>()
    };
    vec![
        ("json object", Constraint::JsonObject),
        ("schema 20 required", schema(props(20, true))),
        ("schema 20 optional", schema(props(20, false))),
        ("schema 100 optional", schema(props(100, false))),
        ("schema 200 optional", schema(props(200, false))),
        ("schema 400 optional", schema(props(400, false))),
        ("schema 600 required", schema(props(600, true))),
        ("schema enum 2000", schema(serde_json::json!({"enum": words(2000)}))),
        (
            "schema enum 3500 in field",
            schema(
                serde_json::json!({"type": "object", "properties": {"a": {"type": "string", "enum": words(3500)}}, "required": ["a"]}),
            ),
        ),
        ("choice 3000", Constraint::Choice(words(3000))),
        ("choice common", Constraint::Choice((0..3000).map(|i| format!("the same begin {}", i * 37)).collect())),
        ("schema maxLength 4000", schema(serde_json::json!({"type": "string", "maxLength": 4000}))),
        ("schema maxLength 200000", schema(serde_json::json!({"type": "string", "maxLength": 200000}))),
        ("schema minLength 5000", schema(serde_json::json!({"type": "string", "minLength": 5000}))),
        (
            "schema maxItems 2000",
            schema(serde_json::json!({"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 2000})),
        ),
        (
            "schema items 100..100",
            schema(
                serde_json::json!({"type": "array", "items": {"type": "integer"}, "minItems": 100, "maxItems": 100}),
            ),
        ),
        ("schema email", schema(serde_json::json!({"type": "string", "format": "email", "maxLength": 100}))),
        (
            "schema date-time",
            schema(serde_json::json!({"type": "array", "items": {"type": "string", "format": "date-time"}})),
        ),
        ("schema uri", schema(serde_json::json!({"type": "string", "format": "uri"}))),
        (
            "schema pattern",
            schema(
                serde_json::json!({"type": "string", "pattern": "^(https?://)?[\\w.-]+(/[\\w./?=&%-]*)?$", "maxLength": 200}),
            ),
        ),
        ("schema any", schema(serde_json::json!({"type": "array", "items": {}}))),
        (
            "schema multipleOf 7",
            schema(serde_json::json!({"type": "array", "items": {"type": "integer", "multipleOf": 7}})),
        ),
        (
            "schema multipleOf 0.01",
            schema(
                serde_json::json!({"type": "array", "items": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 10000}}),
            ),
        ),
        (
            "schema multipleOf 1000",
            schema(serde_json::json!({"type": "array", "items": {"type": "integer", "multipleOf": 1000}})),
        ),
        (
            "schema multipleOf 4999",
            schema(serde_json::json!({"type": "array", "items": {"type": "integer", "multipleOf": 4999}})),
        ),
        (
            "schema multipleOf 9973",
            schema(serde_json::json!({"type": "array", "items": {"type": "integer", "multipleOf": 9973}})),
        ),
        (
            "schema tree",
            schema(
                serde_json::json!({"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"n": {"type": "string"}, "l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}, "c": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}}}),
            ),
        ),
        ("regex \\w+", Constraint::Regex(r"\w+( \w+)*".into())),
        ("regex \\p{L}{1,400}", Constraint::Regex(r"(\p{L}{1,400} )+".into())),
        ("regex prose", Constraint::Regex(r"([A-Z][a-z]+( [a-z]+){2,20}[.!?] ?){1,50}".into())),
        ("regex (.*a.{60}){3}", Constraint::Regex("(.*a.{60}){3}".into())),
        ("regex a?{300}", Constraint::Regex(("a"..="z").start_bound_text(300))),
        (
            "lark sql",
            lark(
                "start: stmt (\";\" stmt)*\nstmt: \"SELECT \" cols \" FROM \" NAME [\" WHERE \" expr]\ncols: \"*\" | NAME (\", \" NAME)*\nexpr: expr \" AND \" expr | expr \" OR \" expr | \"(\" expr \")\" | NAME OP value\nvalue: NUMBER | STRING | NAME\nOP: \" = \" | \" < \" | \" > \" | \" LIKE \"\nNAME: /[a-z_][a-z0-9_]*/\nNUMBER: /[0-9]+/\nSTRING: /'[^']*'/\n",
            ),
        ),
        (
            "lark arith",
            lark(
                "start: e\ne: t ((\"+\" | \"-\") t)*\nt: f ((\"*\" | \"/\") f)*\nf: NUM | \"(\" e \")\"\nNUM: /[0-9]+/\n",
            ),
        ),
        (
            "lark arith right",
            lark("start: e\ne: t \"+\" e | t\nt: f \"*\" t | f\nf: NUM | \"(\" e \")\"\nNUM: /[0-9]+/\n"),
        ),
        (
            "lark python",
            lark(
                "start: (stmt NL)+\nstmt: NAME \" = \" expr | \"return \" expr | \"if \" expr \":\" NL \"    \" stmt | call\nexpr: atom | expr BIN atom\natom: NAME | NUM | STR | call | \"[\" [expr (\", \" expr)*] \"]\" | \"(\" expr \")\"\ncall: NAME \"(\" [expr (\", \" expr)*] \")\"\nBIN: \" + \" | \" - \" | \" * \" | \" == \"\nNAME: /[a-zA-Z_]\\w*/\nNUM: /\\d+(\\.\\d+)?/\nSTR: /\"[^\"\\n]*\"/\nNL: \"\\n\"\n",
            ),
        ),
        ("lark words amb", lark("start: w+\nw: /[a-z]+/ | \" \" | w \"-\" w\n")),
        (
            "lark tool",
            lark(
                "start: TEXT tool\nTEXT: /[^<]*/\ntool: \"<tool>\" %json {\"type\": \"object\", \"properties\": {\"name\": {\"const\": \"get\"}, \"arguments\": {\"type\": \"object\"}}, \"required\": [\"name\", \"arguments\"]} \"</tool>\"\n",
            ),
        ),
        ("hostile s s s", lark("start: s\ns: s s s | s s | /[a-z ]/\n")),
        ("hostile s s", lark("start: s\ns: s s | /[a-z ]/\n")),
        ("hostile nullable", lark("start: a a a a a a a a\na: b b b b | \"\"\nb: c c c | \"\"\nc: /[a-z ]/ | \"\"\n")),
        ("hostile right rec", lark("start: a\na: /[a-z ]/ a | /[a-z ]/\n")),
        ("hostile palindromes", lark("start: s\ns: /[a-z ]/ s /[a-z ]/ | /[a-z ]/ | s s\n")),
        ("hostile unit cycle", lark("start: a\na: b | a a | /[a-z ]/\nb: c | b b\nc: a | c c c\n")),
        (
            "hostile wide",
            lark(&format!(
                "start: x*\nx: {}\n",
                (0..3000).map(|i| format!("/[a-z ]{i}/")).collect::<Vec<_>>().join(" | ")
            )),
        ),
        (
            "hostile wide chars",
            lark(&format!(
                "start: x x*\n{}x: {}\n",
                (0..2000).map(|i| format!("r{i}: /[a-z ]/ \"{i}\" | /[a-z]/\n")).collect::<String>(),
                (0..2000).map(|i| format!("r{i}")).collect::<Vec<_>>().join(" | ")
            )),
        ),
        (
            "hostile wide 250",
            lark(&format!(
                "start: x x*\n{}x: {}\n",
                (0..120).map(|i| format!("r{i}: /[a-z ]/ \"{i}\" | /[a-z]/\n")).collect::<String>(),
                (0..120).map(|i| format!("r{i}")).collect::<Vec<_>>().join(" | ")
            )),
        ),
        (
            "hostile terminals",
            lark(&format!(
                "start: (T | U)*\nT: {}\nU: /[a-z ]+/\n",
                (0..200)
                    .map(|i| format!("/[a-z ]*{}[a-z ]{{0,{}}}/", (b'a' + (i % 26) as u8) as char, i))
                    .collect::<Vec<_>>()
                    .join(" | ")
            )),
        ),
        ("hostile and not", lark("start: T\nT: /(.*a.{30}){2}/ & ~/(.*b.{20}){2}/\n")),
        ("hostile counters", Constraint::Regex("((a|b|[a-z ]){1,900}x?[a-z]{1,900}y?){1,900}".into())),
    ]
}

trait Text {
    fn start_bound_text(self, n: usize) -> String;
}
impl Text for std::ops::RangeInclusive<&str> {
    fn start_bound_text(self, n: usize) -> String {
        "[a-z]?".repeat(n)
    }
}
