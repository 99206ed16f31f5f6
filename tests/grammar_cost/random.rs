//! Constraints drawn from a seed: of every keyword, operator and kind of rule, in sizes that hurt more often than not.

use serde_json::{Value, json};
use tallow::protocol::Constraint;
use tallow::sampling::random_u64;

struct Random {
    seed: u64,
    position: u64,
}

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.position += 1;
        random_u64(self.seed, self.position) % bound
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Mostly small; sometimes of four or more digits.
    fn size(&mut self) -> u64 {
        let digits = [1, 1, 2, 2, 3, 3, 4, 7][self.below(8) as usize];
        self.below(10u64.pow(digits))
    }

    fn regex(&mut self, depth: u64) -> String {
        let kind = self.below(if depth == 0 { 5 } else { 13 });
        match kind {
            0 => self.of(&["a", "b", "ab", " ", "é", "the"]).to_owned(),
            1 => self.of(&["[a-z]", "[^a]", ".", "[a-z ]", "[é-ü]"]).to_owned(),
            2 => self.of(&[r"\w", r"\d", r"\s", r"\p{L}", r"[\p{Lu}\p{Nd}]", r"\W"]).to_owned(),
            3 => ".*".to_owned(),
            4 => self.of(&["[a-z]*", "a?", r"\w+"]).to_owned(),
            5 | 6 => format!("({}){}", self.regex(depth - 1), self.of(&["*", "+", "?"])),
            7 => {
                let (min, more) = (self.size().min(3_000_000), self.size().min(3_000_000));
                format!("({}){{{min},{}}}", self.regex(depth - 1), min + more)
            }
            8 => format!("({}){{{}}}", self.regex(depth - 1), self.size()),
            9 => format!("({}|{}|{})", self.regex(depth - 1), self.regex(depth - 1), self.regex(depth - 1)),
            10 => {
                let part = self.regex(depth - 1);
                part.repeat((1 + self.size()).min(1 + 8_000 / (part.len() as u64 + 1)) as usize)
            }
            11 => (0..1 + self.size().min(400))
                .map(|i| format!("{}{i}", self.of(&["a", "[a-c]", r"\w"])))
                .collect::<Vec<_>>()
                .join("|"),
            _ => format!("{}{}", self.regex(depth - 1), self.regex(depth - 1)),
        }
    }

    fn schema(&mut self, depth: u64) -> Value {
        let kind = self.below(if depth == 0 { 7 } else { 14 });
        match kind {
            0 => json!({"type": "integer", "multipleOf": 1 + self.size(), "minimum": self.size()}),
            1 => json!({"type": "number", "multipleOf": self.size() as f64 / 100.0, "maximum": self.size()}),
            2 => json!({"type": "string", "pattern": self.regex(2), "maxLength": self.size()}),
            3 => json!({"type": "string", "minLength": self.size().min(900), "maxLength": 1000 + self.size()}),
            4 => json!({"enum": (0..1 + self.size().min(2000)).map(|i| json!(i)).collect::<Vec<_>>()}),
            5 => json!({"$ref": self.of(&["#", "#/$defs/a", "#/$defs/b"])}),
            6 => json!({"type": "string", "format": self.of(&["email", "date-time", "uri", "ipv6"])}),
            7 | 8 => self.object(depth),
            9 => {
                json!({"type": "array", "items": self.schema(depth - 1), "minItems": self.size().min(50), "maxItems": 50 + self.size()})
            }
            10 | 11 => {
                let several: Vec<Value> = (0..2 + self.below(3)).map(|_| self.schema(depth - 1)).collect();
                json!({self.of(&["allOf", "anyOf", "oneOf"]): several})
            }
            12 => json!({"$ref": "#/$defs/a", "minimum": self.size(), "anyOf": [self.schema(depth - 1), {}]}),
            _ => json!({"prefixItems": [self.schema(depth - 1), self.schema(depth - 1)], "items": false}),
        }
    }

    fn object(&mut self, depth: u64) -> Value {
        let num = 1 + self.size().min(400);
        let inner = self.schema(depth - 1);
        let properties: serde_json::Map<String, Value> =
            (0..num).map(|i| (format!("p{i}"), if i == 0 { inner.clone() } else { json!({}) })).collect();
        let patterns: serde_json::Map<String, Value> =
            (0..self.below(4)).map(|i| (format!("^{i}{}", self.regex(1)), json!({"type": "null"}))).collect();
        let mut object = json!({
            "type": "object", "properties": properties,
            "required": if self.below(2) == 0 { vec!["p0"] } else { vec![] },
            "additionalProperties": self.below(2) == 0,
        });
        if self.below(2) == 0 {
            object["patternProperties"] = Value::Object(patterns);
        }
        if self.below(3) == 0 {
            object[self.of(&["minProperties", "maxProperties"])] = json!(self.below(3));
        }
        object
    }

    fn terminal(&mut self, num: u64) -> String {
        let alternatives: Vec<String> = (0..1 + self.below(3))
            .map(|_| {
                let parts: Vec<String> = (0..1 + self.below(4)).map(|_| self.terminal_part(num)).collect();
                parts.join(self.of(&[" ", " ", " ", " & "]))
            })
            .collect();
        alternatives.join(" | ")
    }

    fn terminal_part(&mut self, num: u64) -> String {
        let atom = match self.below(6) {
            0 | 1 => format!("T{}", self.below(num)),
            2 | 3 => format!("/{}/", self.regex(2)),
            4 => "\"ab\"".to_owned(),
            _ => format!("~(/{}/)", self.regex(1)),
        };
        let again = self.of(&["", "", "", "?", "*", "~ 2..500", "{3,70000}"]);
        if again.starts_with('~') && atom.starts_with('~') { atom } else { format!("{atom}{again}") }
    }

    fn lark(&mut self) -> String {
        let (rules, terminals) = (1 + self.below(6), 1 + self.below(6));
        let mut text = "start: r0\n".to_owned();
        for i in 0..rules {
            let alternatives: Vec<String> = (0..1 + self.below(4))
                .map(|_| {
                    let parts: Vec<String> = (0..self.below(4)).map(|_| self.rule_part(rules, terminals)).collect();
                    if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") }
                })
                .collect();
            text += &format!("r{i}: {}\n", alternatives.join(" | "));
        }
        for i in 0..terminals {
            // Only what comes later, so that none stands for itself.
            let body = if i + 1 == terminals { "/[a-z]/".to_owned() } else { self.terminal(terminals) };
            text += &format!("T{i}: {body}\n");
        }
        text
    }

    fn rule_part(&mut self, rules: u64, terminals: u64) -> String {
        match self.below(8) {
            0..=2 => format!("r{}", self.below(rules)),
            3 | 4 => format!("T{}", self.below(terminals)),
            5 => format!("/{}/", self.regex(1)),
            6 => format!("(r{} | \"x\")*", self.below(rules)),
            _ => format!("%json {}", self.schema(1)),
        }
    }
}

/// The constraint of a seed.
pub(crate) fn constraint(seed: u64) -> Constraint {
    let mut random = Random { seed, position: 0 };
    match seed % 3 {
        0 => {
            let mut schema = random.object(3);
            schema["$defs"] = json!({"a": random.schema(2), "b": random.schema(1)});
            Constraint::JsonSchema(schema.to_string())
        }
        1 => Constraint::Regex(random.regex(4)),
        _ => Constraint::Lark(random.lark()),
    }
}
