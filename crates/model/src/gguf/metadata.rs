//! A file's metadata: typed values under dotted keys, with getters that name the key in every error.
//!
//! Numbers are kept by meaning, not by width: writers disagree about widths (`u32` here, `i32` or `u64` there), so a
//! getter accepts every integer type whose value fits. A string is never a number, a number never a boolean.

use std::collections::BTreeMap;

use tallow_stream::error::{Error, Result};

/// Keys and values of a file.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Uint(u64),
    /// Any signed integer.
    Int(i64),
    /// `f32` (exactly) or `f64`.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Str(String),
    /// An array, all of whose elements have one type.
    Array(Array),
}

/// Elements of an array, in about the space that they take in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Booleans.
    Bools(Vec<bool>),
    /// `u8`.
    U8s(Vec<u8>),
    /// `i8`, `i16`, `u16` or `i32`.
    I32s(Vec<i32>),
    /// `u32`.
    U32s(Vec<u32>),
    /// `i64`.
    I64s(Vec<i64>),
    /// `u64`.
    U64s(Vec<u64>),
    /// `f32`.
    F32s(Vec<f32>),
    /// `f64`.
    F64s(Vec<f64>),
    /// Strings.
    Strings(Strings),
    /// Arrays of arrays.
    Nested(Vec<Array>),
}

/// Many strings in one allocation: a vocabulary of 262,144 tokens would otherwise be as many small ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// Where each string ends in `text`; it begins where the one before ends.
    ends: Vec<usize>,
}

impl Metadata {
    /// Adds an entry; false if the key was there before, whose value then stays.
    pub(super) fn insert(&mut self, key: &str, value: Value) -> bool {
        if self.entries.contains_key(key) {
            return false;
        }
        self.entries.insert(key.to_owned(), value);
        true
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// All entries, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The string under `key`.
    ///
    /// # Errors
    /// If the key is missing or holds something else.
    pub(crate) fn get_str(&self, key: &str) -> Result<&str> {
        self.opt_str(key)?.ok_or_else(|| missing(key))
    }

    /// The string under `key`, if there is one.
    ///
    /// # Errors
    /// If the key holds something else.
    pub(crate) fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Str(s)) => Ok(Some(s)),
            Some(v) => Err(wrong(key, "a string", v)),
        }
    }

    /// The integer under `key`, if there is one.
    ///
    /// # Errors
    /// If the key holds something else or a value that does not fit.
    pub(crate) fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        self.integer(key, "an integer from 0 to 4294967295")
    }

    /// The number under `key`, if there is one. A number that is not finite is an error: nothing that a model is
    /// configured by may be.
    ///
    /// # Errors
    /// If the key holds something else, or is not finite.
    pub(crate) fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(f)) if (*f as f32).is_finite() => Ok(Some(*f as f32)),
            Some(v) => Err(wrong(key, "a finite floating-point number", v)),
        }
    }

    /// The boolean under `key`, if there is one.
    ///
    /// # Errors
    /// If the key holds something else.
    pub(crate) fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => Err(wrong(key, "a boolean", v)),
        }
    }

    /// The strings under `key`.
    ///
    /// # Errors
    /// If the key is missing or holds something else.
    pub fn strings(&self, key: &str) -> Result<&Strings> {
        self.opt_strings(key)?.ok_or_else(|| missing(key))
    }

    /// The strings under `key`, if there are any.
    ///
    /// # Errors
    /// If the key holds something else.
    pub(crate) fn opt_strings(&self, key: &str) -> Result<Option<&Strings>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Strings(s))) => Ok(Some(s)),
            Some(v) => Err(wrong(key, "an array of strings", v)),
        }
    }

    /// The floating-point numbers under `key`, if there are any.
    ///
    /// # Errors
    /// If the key holds something else.
    pub(crate) fn opt_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32s(a))) => Ok(Some(a.clone())),
            Some(Value::Array(Array::F64s(a))) => Ok(Some(a.iter().map(|&x| x as f32).collect())),
            Some(v) => Err(wrong(key, "an array of floating-point numbers", v)),
        }
    }

    /// The integers under `key`, if there are any.
    ///
    /// # Errors
    /// If the key holds something else, or an element does not fit.
    pub(crate) fn opt_i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.integers(key, "an array of integers of 32 bits")
    }

    fn integer<T: TryFrom<u64> + TryFrom<i64>>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let fitting = match value {
            Value::Uint(x) => T::try_from(*x).ok(),
            Value::Int(x) => T::try_from(*x).ok(),
            _ => None,
        };
        fitting.map(Some).ok_or_else(|| wrong(key, expected, value))
    }

    fn integers<T>(&self, key: &str, expected: &str) -> Result<Option<Vec<T>>>
    where
        T: TryFrom<u8> + TryFrom<i32> + TryFrom<u32> + TryFrom<i64> + TryFrom<u64>,
    {
        let Some(value) = self.get(key) else { return Ok(None) };
        let converted = match value {
            Value::Array(Array::U8s(a)) => convert(key, expected, a),
            Value::Array(Array::I32s(a)) => convert(key, expected, a),
            Value::Array(Array::U32s(a)) => convert(key, expected, a),
            Value::Array(Array::I64s(a)) => convert(key, expected, a),
            Value::Array(Array::U64s(a)) => convert(key, expected, a),
            _ => Err(wrong(key, expected, value)),
        };
        converted.map(Some)
    }
}

impl Strings {
    pub(super) fn with_capacity(len: usize) -> Self {
        Self { text: String::new(), ends: Vec::with_capacity(len) }
    }

    pub(super) fn push(&mut self, s: &str) {
        self.text.push_str(s);
        self.ends.push(self.text.len());
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.text.shrink_to_fit();
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String number `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.text[start..end])
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut start, end)..end])
    }
}

impl Value {
    /// What it is, with the value where that is short: the second half of "must be X, is Y".
    pub fn describe(&self) -> String {
        match self {
            Self::Uint(x) => format!("the integer {x}"),
            Self::Int(x) => format!("the integer {x}"),
            Self::Float(x) => format!("the number {x}"),
            Self::Bool(x) => format!("the boolean {x}"),
            Self::Str(s) if s.len() <= 40 => format!("the string {s:?}"),
            Self::Str(s) => format!("a string of {} bytes", s.len()),
            Self::Array(a) => format!("an array of {} {}", a.len(), a.element_name()),
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Bools(a) => a.len(),
            Self::U8s(a) => a.len(),
            Self::I32s(a) => a.len(),
            Self::U32s(a) => a.len(),
            Self::I64s(a) => a.len(),
            Self::U64s(a) => a.len(),
            Self::F32s(a) => a.len(),
            Self::F64s(a) => a.len(),
            Self::Strings(a) => a.len(),
            Self::Nested(a) => a.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn element_name(&self) -> &'static str {
        match self {
            Self::Bools(_) => "booleans",
            Self::U8s(_) | Self::I32s(_) | Self::U32s(_) | Self::I64s(_) | Self::U64s(_) => "integers",
            Self::F32s(_) | Self::F64s(_) => "floating-point numbers",
            Self::Strings(_) => "strings",
            Self::Nested(_) => "arrays",
        }
    }
}

fn missing(key: &str) -> Error {
    Error::bad_model(format!("key `{key}` is missing"))
}

fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    Error::bad_model(format!("key `{key}` must be {expected}, is {}", value.describe()))
}

fn convert<S: Copy + std::fmt::Display, T: TryFrom<S>>(key: &str, expected: &str, from: &[S]) -> Result<Vec<T>> {
    let element = |(i, &x): (usize, &S)| {
        T::try_from(x).map_err(|_| Error::bad_model(format!("key `{key}` must be {expected}, its element {i} is {x}")))
    };
    from.iter().enumerate().map(element).collect()
}
