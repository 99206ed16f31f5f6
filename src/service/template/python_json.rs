//! The `tojson` filter as the transformers library has it: Python's `json.dumps` without ASCII escapes. Jinja's own
//! escapes HTML, which no model was trained on.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// No prompt has use for more.
const JSON_BYTES_MAX: usize = 4 << 20;
/// Brackets, separators, values and pieces between escapes. Bounds the walk over lists that hold one list many times: so
/// many took 30 ms where P15 was measured.
const JSON_PIECES_MAX: usize = 512 << 10;
/// Wider indentation is an attack on memory.
const INDENT_MAX: usize = 16;

/// `value | tojson(indent=None, separators=None, sort_keys=False, ensure_ascii=False)`.
#[expect(clippy::needless_pass_by_value, reason = "keyword arguments come by value")]
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<usize>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let indent = if indent.is_some() { indent } else { kwargs.get("indent")? };
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    if let Some(indent) = indent.filter(|indent| *indent > INDENT_MAX) {
        return Err(rule(format!("tojson indents by at most {INDENT_MAX}, got {indent}")));
    }
    if ensure_ascii == Some(true) {
        return Err(rule("tojson(ensure_ascii=true) is not supported".to_owned()));
    }
    let mut style = PythonStyle::new(indent);
    if let Some(separators) = separators {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|given| rule(format!("tojson takes two separators, got {}", given.len())))?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    let mut json = to_string(value, style.clone())?;
    if sort_keys == Some(true) {
        let mut tree: serde_json::Value = serde_json::from_str(&json).map_err(|e| rule(e.to_string()))?;
        tree.sort_all_objects();
        json = to_string(&tree, style)?;
    }
    // Serialising walks the value, which the engine does not see; the result it charges itself.
    state.consume_fuel(json.len() as u64 / 16)?;
    Ok(json)
}

/// `json.dumps(value, ensure_ascii=False)`.
///
/// # Errors
/// If it is longer than any prompt.
pub(super) fn dumps(value: &impl Serialize) -> Result<String, Error> {
    to_string(value, PythonStyle::new(None))
}

fn rule(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn to_string(value: &impl Serialize, style: PythonStyle) -> Result<String, Error> {
    let mut serializer = Serializer::with_formatter(Capped::default(), style);
    value.serialize(&mut serializer).map_err(|e| rule(format!("tojson failed: {e}")))?;
    String::from_utf8(serializer.into_inner().bytes).map_err(|_| rule("tojson made invalid UTF-8".to_owned()))
}

#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    num_pieces: usize,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.num_pieces += 1;
        if self.bytes.len() + bytes.len() > JSON_BYTES_MAX || self.num_pieces > JSON_PIECES_MAX {
            let message = format!("more than {JSON_BYTES_MAX} bytes or {JSON_PIECES_MAX} pieces of JSON");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Separators and line breaks as `json.dumps` sets them: `", "` and `": "`, or one item a line without the space.
#[derive(Clone)]
struct PythonStyle {
    item_separator: String,
    key_separator: String,
    indent: Option<usize>,
    depth: usize,
    is_empty: bool,
}

impl PythonStyle {
    fn new(indent: Option<usize>) -> Self {
        let item_separator = if indent.is_some() { "," } else { ", " };
        Self {
            item_separator: item_separator.to_owned(),
            key_separator: ": ".to_owned(),
            indent,
            depth: 0,
            is_empty: true,
        }
    }

    fn begin<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn end<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.break_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn item<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.break_line(writer)
    }

    fn break_line<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        for _ in 0..indent * self.depth {
            writer.write_all(b" ")?;
        }
        Ok(())
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key_separator.as_bytes())
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }
}
