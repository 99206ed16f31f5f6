//! Constraints that are written to hurt, and constraints that people use.

use serde_json::{Map, Value, json};
use tallow::protocol::Constraint;

type Named = (&'static str, Constraint);

fn schema(value: &Value) -> Constraint {
    Constraint::JsonSchema(value.to_string())
}

fn regex(text: impl Into<String>) -> Constraint {
    Constraint::Regex(text.into())
}

fn lark(text: impl Into<String>) -> Constraint {
    Constraint::Lark(text.into())
}

/// At least forty; a regression stays here for ever.
pub(crate) fn hostile() -> Vec<Named> {
    [numbers(), strings(), combined(), expressions(), terminals(), rules()].concat()
}

fn numbers() -> Vec<Named> {
    let multiple = |m: f64| schema(&json!({"type": "integer", "multipleOf": m}));
    vec![
        ("multipleOf 9999991", multiple(9_999_991.0)),
        ("multipleOf 4294967291", multiple(4_294_967_291.0)),
        ("multipleOf 1e300", multiple(1e300)),
        ("multipleOf 1e-300", multiple(1e-300)),
        ("multipleOf 0.07", multiple(0.07)),
        ("multipleOf 9973", multiple(9973.0)),
        (
            "multipleOf 9973 in a range",
            schema(&json!({"multipleOf": 9973, "type": "number", "minimum": 1e9, "maximum": 1e15})),
        ),
        ("two primes", schema(&json!({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}))),
        (
            "twenty primes",
            schema(
                &json!({"allOf": ([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71].map(|m| json!({"type": "integer", "multipleOf": m})))}),
            ),
        ),
        (
            "many multiples",
            schema(
                &json!({"anyOf": (9000..9300).map(|m| json!({"type": "integer", "multipleOf": m})).collect::<Vec<_>>()}),
            ),
        ),
        ("bounds of 300 digits", schema(&json!({"type": "number", "minimum": 1e-300, "maximum": 1.797e308}))),
        (
            "many bounds",
            schema(
                &json!({"anyOf": (0..1000).map(|i| json!({"type": "number", "minimum": 1e-300, "exclusiveMaximum": i})).collect::<Vec<_>>()}),
            ),
        ),
        ("integers at the edges", schema(&json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}))),
    ]
}

fn strings() -> Vec<Named> {
    vec![
        ("minLength 4e9", schema(&json!({"type": "string", "minLength": 4_000_000_000u64}))),
        ("pattern and length", schema(&json!({"type": "string", "pattern": "^(.*a.{200}){3}$", "minLength": 5000}))),
        (
            "patterns of all",
            schema(
                &json!({"allOf": (0..60).map(|i| json!({"type": "string", "pattern": format!("a.{{{i}}}b")})).collect::<Vec<_>>()}),
            ),
        ),
        (
            "patterns of alternatives",
            schema(
                &json!({"allOf": (0..4).map(|i| json!({"type": "string", "pattern": (0..40).map(|k| format!("[a-{}]{}{i}", char::from(b'b' + k % 20), k)).collect::<Vec<_>>().join("|")})).collect::<Vec<_>>()}),
            ),
        ),
        ("classes", schema(&json!({"type": "string", "pattern": r"\p{L}".repeat(5000)}))),
        (
            "negative names",
            schema(
                &json!({"type": "object", "properties": (0..500).map(|i| (format!("{}{i}", "x".repeat(60)), json!(true))).collect::<Map<String, Value>>(), "additionalProperties": {"type": "integer"}}),
            ),
        ),
        (
            "pattern properties",
            schema(
                &json!({"type": "object", "patternProperties": (0..600).map(|i| (format!("^(a|b){{{i}}}c"), json!(true))).collect::<Map<String, Value>>()}),
            ),
        ),
        (
            "pattern properties and names",
            schema(
                &json!({"type": "object", "properties": {"a".repeat(40_000): true}, "patternProperties": {"(.*a.{200}){3}": {"type": "null"}}}),
            ),
        ),
        (
            "whitespace",
            lark(
                "start: %json {\"x-guidance\": {\"whitespace_pattern\": \"([ ]?){1000}([\\\\n]?){1000}(.*a.{300}){3}\"}, \"type\": \"array\"}",
            ),
        ),
    ]
}

fn combined() -> Vec<Named> {
    let tower = |keyword: &str| {
        (0..60).fold(json!({"type": "integer"}), |inner, i| json!({keyword: [inner.clone(), {"minimum": i}]}))
    };
    let doubling: Map<String, Value> = (0..40)
        .map(|i| {
            (
                format!("d{i}"),
                json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]}),
            )
        })
        .chain([("d40".to_owned(), json!({"type": "integer"}))])
        .collect();
    let consts = |n: usize| (0..n).map(|i| json!(i)).collect::<Vec<_>>();
    vec![
        ("allOf tower", schema(&tower("allOf"))),
        ("anyOf tower", schema(&tower("anyOf"))),
        ("oneOf tower", schema(&tower("oneOf"))),
        ("doubling refs", schema(&json!({"$ref": "#/$defs/d0", "$defs": doubling}))),
        ("a ref to itself", schema(&json!({"$ref": "#"}))),
        (
            "refs in a ring with siblings",
            schema(
                &json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b", "minimum": 1}, "b": {"$ref": "#/$defs/a", "maximum": 5}}}),
            ),
        ),
        (
            "products of unions",
            schema(
                &json!({"allOf": [{"anyOf": consts(1500).iter().map(|i| json!({"const": i})).collect::<Vec<_>>()}, {"enum": consts(5000)}]}),
            ),
        ),
        (
            "union and a large object",
            schema(
                &json!({"allOf": [{"properties": (0..1500).map(|i| (format!("p{i}"), json!({}))).collect::<Map<String, Value>>()}, {"enum": consts(6000)}]}),
            ),
        ),
        (
            "oneOf of many",
            schema(&json!({"oneOf": (0..3500).map(|i| json!({"const": format!("{i}")})).collect::<Vec<_>>()})),
        ),
        ("a large enum", schema(&json!({"enum": consts(9000)}))),
        (
            "optional properties",
            schema(
                &json!({"type": "object", "properties": (0..3000).map(|i| (format!("p{i}"), json!({}))).collect::<Map<String, Value>>()}),
            ),
        ),
        ("at least one of many", schema(&one_of_properties(1500, "minProperties"))),
        ("at least one of 141", schema(&one_of_properties(141, "minProperties"))),
        ("at least one of 100", schema(&one_of_properties(100, "minProperties"))),
        ("at most one of 100", schema(&one_of_properties(100, "maxProperties"))),
        (
            "at least one of many that are put together",
            schema(&json!({
                "allOf": [{"$ref": "#/$defs/a"}, {"minProperties": 1}],
                "$defs": {"a": {"type": "object", "additionalProperties": false, "properties": properties(800)}}
            })),
        ),
        (
            "many objects with at least one of some",
            schema(&json!({"anyOf": vec![one_of_properties(90, "minProperties"); 30]})),
        ),
        (
            "many items",
            schema(
                &json!({"type": "array", "items": {"const": "a"}, "minItems": 1_000_000_000, "maxItems": 2_000_000_000}),
            ),
        ),
        (
            "many prefix items",
            schema(
                &json!({"type": "array", "prefixItems": (0..3000).map(|_| json!({"type": "integer"})).collect::<Vec<_>>()}),
            ),
        ),
        ("a thousand arrays deep", Constraint::JsonSchema("{\"items\":".repeat(100) + "{}" + &"}".repeat(100))),
    ]
}

fn properties(num: usize) -> Map<String, Value> {
    (0..num).map(|i| (format!("p{i}"), json!({"type": "null"}))).collect()
}

fn one_of_properties(num: usize, keyword: &str) -> Value {
    json!({"type": "object", keyword: 1, "additionalProperties": false, "properties": properties(num)})
}

fn expressions() -> Vec<Named> {
    let optional = |n: usize| (0..n).map(|i| format!("{}?", char::from(b'a' + (i % 26) as u8))).collect::<String>();
    vec![
        ("optional classes", regex(r"[\p{Lu}\p{Nd}]?".repeat(3400))),
        ("optional letters", regex(optional(30_000))),
        ("optional letters within the bound", regex(optional(650))),
        ("nested counts", regex("(".repeat(100) + "a" + &"{9}){9}".repeat(50) + &")".repeat(50))),
        ("counts of counts", regex("((a|b|[a-z ]){1,900}x?[a-z]{1,900}y?){1,900}")),
        ("three windows", regex("(.*a.{200}){3}|(.*b.{300}){4}")),
        (
            "many windows",
            regex(
                (0..60)
                    .map(|i| format!(".*{}.{{{}}}", char::from(b'a' + i % 26), 100 + u16::from(i)))
                    .collect::<Vec<_>>()
                    .join("|"),
            ),
        ),
        (
            "different classes",
            regex((0..4000).map(|i| format!(r"[\p{{L}}{}]", char::from_u32(0x4e00 + i).unwrap())).collect::<String>()),
        ),
        (
            "alternatives of classes",
            regex(
                (0..500)
                    .map(|i| format!(r"[\w{}]x{i}", char::from_u32(0x4e00 + i).unwrap()))
                    .collect::<Vec<_>>()
                    .join("|"),
            ),
        ),
        ("alternatives", regex((0..6000).map(|i| format!("[a-z]{i}")).collect::<Vec<_>>().join("|"))),
        ("case folded", regex(format!("(?i){}", "straße".repeat(8000)))),
        ("a long literal", regex("ab".repeat(30_000))),
        ("a repeated text", regex("(abcdefgh){9999999}")),
        ("nested stars", regex("(((((a*)*b*)*c*)*d*)*e*)*".repeat(300))),
        ("choices", Constraint::Choice((0..7000).map(|i| format!("pre{i}")).collect())),
        (
            "choices with one beginning",
            Constraint::Choice((0..600).map(|i| format!("{}{i}", "the same ".repeat(10))).collect()),
        ),
        ("choices that begin one another", Constraint::Choice((1..350).map(|i| "a".repeat(i)).collect())),
    ]
}

fn terminals() -> Vec<Named> {
    let doubling: String = (0..60).map(|i| format!("T{i}: T{n} T{n}\n", n = i + 1)).collect();
    vec![
        ("doubling terminals", lark(format!("start: T0\n{doubling}T60: /[ab]/\n"))),
        (
            "a thousand of a thousand",
            lark(format!("start: A\nA: {}\nB: {}\nC: /[ab]/\n", "B ".repeat(5000), "C ".repeat(5000))),
        ),
        ("optional terminals", lark(format!("start: A\nA: {}\nB: /[a-z]/\n", "B? ".repeat(10_000)))),
        ("and", lark(format!("start: A\nA: ({}) & ({})\n", alternatives(900), alternatives(901)))),
        (
            "and of many",
            lark(format!(
                "start: A\nA: {}\n",
                (0..30).map(|i| format!("/(.*a.{{{i}}}b.*)/")).collect::<Vec<_>>().join(" & ")
            )),
        ),
        ("not", lark(format!("start: A\nA: /[a-z ]+/ & ~({})\n", alternatives(900)))),
        ("not of not", lark("start: A\nA: ~(~(/(.*a.{60}){2}/) & ~(/(.*b.{60}){2}/))\n")),
        ("windows in terminals", lark(format!("start: {}", vec!["/[a-z]{1,900}x[a-z]{1,900}y/"; 400].join(" | ")))),
        (
            "overlapping terminals",
            lark(format!(
                "start: (T | U)*\nT: {}\nU: /[a-z ]+/\n",
                (0..200)
                    .map(|i| format!("/[a-z ]*{}[a-z ]{{0,{i}}}/", char::from(b'a' + i % 26)))
                    .collect::<Vec<_>>()
                    .join(" | ")
            )),
        ),
        (
            "substrings",
            lark(format!("start: %regex {{\"substring_chars\": {}}}", Value::from("abcabdabe ".repeat(5000)))),
        ),
        ("lazy", lark("start: a b\na[lazy]: /(.*x.{50}){3}/\nb: /[a-z]*/\n")),
        ("stops", lark("start: a*\na[stop=/(x|y){1,500}z/]: /(.|\\n)*/\n")),
        ("special tokens", lark("start: (<[1-200]> | /[a-z]/)*\n")),
    ]
}

fn alternatives(num: usize) -> String {
    (0..num).map(|i| format!("/[a-z]{i}/")).collect::<Vec<_>>().join(" | ")
}

fn rules() -> Vec<Named> {
    let doubling: String = (0..60).map(|i| format!("r{i}: r{n} r{n}\n", n = i + 1)).collect();
    let unit: String = (0..2000).map(|i| format!("r{i}: r{n} | r{n} r{n}\n", n = (i + 1) % 2000)).collect();
    vec![
        ("ambiguous", lark("start: s\ns: s s s | s s | /[a-z ]/\n")),
        ("nullable", lark("start: a a a a a a a a\na: b b b b | \"\"\nb: c c c | \"\"\nc: /[a-z ]/ | \"\"\n")),
        ("left recursive", lark("start: s\ns: s /[a-z]/ | s s | \"\"\n")),
        ("right recursive", lark("start: s\ns: /[a-z]/ s | \"\"\n")),
        ("no text", lark("start: s\ns: s s\n")),
        ("doubling rules", lark(format!("start: r0\n{doubling}r60: \"a\"\n"))),
        ("a ring of rules", lark(format!("start: r0 /x/\n{unit}"))),
        (
            "many alternatives",
            lark(format!("start: x*\nx: {}\n", (0..5000).map(|i| format!("\"a{i}\"")).collect::<Vec<_>>().join(" | "))),
        ),
        (
            "many rules",
            lark(format!(
                "start: x*\nx: {}\n{}",
                (0..2300).map(|i| format!("r{i}")).collect::<Vec<_>>().join("|"),
                (0..2300).map(|i| format!("r{i}: /[a-z]/ \"{i}\"\n")).collect::<String>()
            )),
        ),
        ("repeated rules", lark("start: x{1,1000000000}\nx: y{1,1000000000}\ny: \"a\"{1000000}\n")),
        ("many nested grammars", lark(format!("start: {}\n", "%json {\"type\": \"object\"} ".repeat(400)))),
        ("nested in nested", lark("start: %lark { start: %lark { start: A\nA: B B B\nB: /(.*a.{100}){3}/ } }\n")),
    ]
}

/// Of the kinds and sizes that clients send.
pub(crate) fn ordinary() -> Vec<Named> {
    let tool = |num: usize| {
        let fields: Map<String, Value> = (0..num)
            .map(|i| {
                (
                    format!("field_{i}"),
                    match i % 6 {
                        0 => json!({"type": "string", "description": "what it is", "maxLength": 200}),
                        1 => json!({"type": "integer", "minimum": 0, "maximum": 10_000}),
                        2 => json!({"enum": ["low", "medium", "high", format!("other {i}")]}),
                        3 => json!({"type": "array", "items": {"type": "string"}, "maxItems": 50}),
                        4 => json!({"anyOf": [{"type": "null"}, {"type": "number"}]}),
                        _ => json!({"type": "string", "pattern": r"^[A-Z]{2}-\d{4,8}$"}),
                    },
                )
            })
            .collect();
        let required: Vec<String> = fields.keys().cloned().collect();
        json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false})
    };
    let formats = ["date-time", "date", "time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration"];
    let formats: Map<String, Value> =
        formats.map(|f| (f.to_owned(), json!({"type": "string", "format": f}))).into_iter().collect();
    vec![
        ("a tool of 20", schema(&tool(20))),
        ("a tool of 300", schema(&tool(300))),
        ("a tool of 400 that are optional", {
            let mut schema = tool(400);
            schema["required"] = json!([]);
            self::schema(&schema)
        }),
        ("formats", schema(&json!({"type": "object", "properties": formats, "required": ["email", "uuid"]}))),
        (
            "an enum of 4000",
            schema(&json!({"type": "string", "enum": (0..4000).map(|i| format!("item {i}")).collect::<Vec<_>>()})),
        ),
        (
            "a tagged union",
            schema(
                &json!({"oneOf": (0..40).map(|i| json!({"type": "object", "properties": {"kind": {"const": format!("k{i}")}, "value": {"type": "string"}}, "required": ["kind", "value"], "additionalProperties": false})).collect::<Vec<_>>()}),
            ),
        ),
        (
            "a tree",
            schema(
                &json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["name"]}}}),
            ),
        ),
        (
            "inheritance",
            schema(
                &json!({"allOf": [{"$ref": "#/$defs/base"}, {"type": "object", "properties": {"b": {"type": "string", "maxLength": 5000}}, "required": ["b"]}], "$defs": {"base": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}),
            ),
        ),
        ("lengths of thousands", schema(&json!({"type": "string", "minLength": 100, "maxLength": 8000}))),
        ("a length without bound", schema(&json!({"type": "string", "maxLength": i32::MAX}))),
        (
            "prices",
            schema(
                &json!({"type": "array", "items": {"type": "number", "multipleOf": 0.01, "minimum": 0}, "minItems": 1, "maxItems": 1000}),
            ),
        ),
        ("multiples", schema(&json!({"type": "array", "items": {"type": "integer", "multipleOf": 1000}}))),
        (
            "pattern properties",
            schema(
                &json!({"type": "object", "patternProperties": {"^x-": {"type": "string"}, "^[0-9]+$": {"type": "integer"}}, "additionalProperties": false}),
            ),
        ),
        ("words", regex(r"\w+( \w+){0,200}")),
        ("letters of all languages", regex(r"[\p{L}\p{M}'-]{1,60}(, [\p{L}\p{M}'-]{1,60}){0,9}")),
        ("an address", regex(r"^[\w.+-]+@[\w-]+(\.[\w-]+)+$")),
        ("prose", regex(r"([A-Z][a-z]+( [a-z]+){2,20}[.!?] ?){1,50}")),
        ("3000 choices", Constraint::Choice((0..3000).map(|i| format!("choice number {i}")).collect())),
        (
            "arithmetic",
            lark(
                "start: e\ne: t ((\"+\" | \"-\") t)*\nt: f ((\"*\" | \"/\") f)*\nf: NUM | \"(\" e \")\"\nNUM: /[0-9]+/\n%ignore / /\n",
            ),
        ),
        (
            "keywords",
            lark(format!(
                "start: NAME (\" \" NAME)*\nNAME: /[a-z_]+/ & ~KEYWORD\nKEYWORD: {}\n",
                ["if", "else", "for", "while", "return", "break", "continue", "fn", "let", "match", "impl", "use"]
                    .map(|w| format!("\"{w}\""))
                    .join(" | ")
            )),
        ),
        (
            "a tool call in text",
            lark(
                "start: TEXT \"<tool>\" %json {\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\"}}, \"required\": [\"name\"]} \"</tool>\"\nTEXT: /[^<]*/\n",
            ),
        ),
    ]
}
