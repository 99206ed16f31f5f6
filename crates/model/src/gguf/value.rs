//! Values of metadata entries. The type ids and layouts are the format's; arrays may nest.

use super::cursor::ByteCursor;
use super::limits::{ARRAY_DEPTH_MAX, ARRAY_ELEMENTS_MAX, STRING_BYTES_MAX};
use super::metadata::{Array, Strings, Value};
use tallow_stream::error::{Error, Result};

/// Reads a type id and the value of that type. Errors say what is wrong; the caller names the key.
pub(super) fn read_value(cursor: &mut ByteCursor<'_>) -> Result<Value> {
    let type_id = cursor.u32("the value type")?;
    let what = "the value";
    Ok(match type_id {
        0 => Value::Uint(u64::from(cursor.array::<1>(what)?[0])),
        1 => Value::Int(i64::from(i8::from_le_bytes(cursor.array(what)?))),
        2 => Value::Uint(u64::from(u16::from_le_bytes(cursor.array(what)?))),
        3 => Value::Int(i64::from(i16::from_le_bytes(cursor.array(what)?))),
        4 => Value::Uint(u64::from(cursor.u32(what)?)),
        5 => Value::Int(i64::from(i32::from_le_bytes(cursor.array(what)?))),
        6 => Value::Float(f64::from(f32::from_le_bytes(cursor.array(what)?))),
        7 => Value::Bool(boolean(cursor.array::<1>(what)?[0])?),
        8 => Value::Str(cursor.str(STRING_BYTES_MAX, what)?.to_owned()),
        9 => Value::Array(read_array(cursor, 1, &mut { ARRAY_ELEMENTS_MAX })?),
        10 => Value::Uint(cursor.u64(what)?),
        11 => Value::Int(i64::from_le_bytes(cursor.array(what)?)),
        12 => Value::Float(f64::from_le_bytes(cursor.array(what)?)),
        _ => return Err(Error::bad_model(format!("unknown value type {type_id}; types are 0 to 12"))),
    })
}

/// Reads an array. `budget` is how many elements it and all arrays within may still have together.
fn read_array(cursor: &mut ByteCursor<'_>, depth: usize, budget: &mut u64) -> Result<Array> {
    let type_id = cursor.u32("the element type")?;
    let len = cursor.u64("the number of elements")?;
    if len > *budget {
        return Err(Error::bad_model(format!(
            "an array of {len} elements is too long; one key may hold {ARRAY_ELEMENTS_MAX}"
        )));
    }
    *budget -= len;
    Ok(match type_id {
        0 => Array::U8s(cursor.take(len, "the array")?.to_vec()),
        1 => Array::I32s(numbers(cursor, len, |b| i32::from(i8::from_le_bytes(b)))?),
        2 => Array::I32s(numbers(cursor, len, |b| i32::from(u16::from_le_bytes(b)))?),
        3 => Array::I32s(numbers(cursor, len, |b| i32::from(i16::from_le_bytes(b)))?),
        4 => Array::U32s(numbers(cursor, len, u32::from_le_bytes)?),
        5 => Array::I32s(numbers(cursor, len, i32::from_le_bytes)?),
        6 => Array::F32s(numbers(cursor, len, f32::from_le_bytes)?),
        7 => Array::Bools(booleans(cursor.take(len, "the array")?)?),
        8 => Array::Strings(strings(cursor, len)?),
        9 => Array::Nested(nested(cursor, len, depth, budget)?),
        10 => Array::U64s(numbers(cursor, len, u64::from_le_bytes)?),
        11 => Array::I64s(numbers(cursor, len, i64::from_le_bytes)?),
        12 => Array::F64s(numbers(cursor, len, f64::from_le_bytes)?),
        _ => return Err(Error::bad_model(format!("unknown element type {type_id}; types are 0 to 12"))),
    })
}

/// Numbers of `N` bytes each. Their bytes are taken first, so the vector is never longer than the file allows.
fn numbers<const N: usize, T>(cursor: &mut ByteCursor<'_>, len: u64, from_le: fn([u8; N]) -> T) -> Result<Vec<T>> {
    // `len` is at most ARRAY_ELEMENTS_MAX, so the product cannot wrap.
    let bytes = cursor.take(len * N as u64, "the array")?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|&b| from_le(b)).collect())
}

fn booleans(bytes: &[u8]) -> Result<Vec<bool>> {
    let element = |(i, &b): (usize, &u8)| boolean(b).map_err(|e| e.context(format!("element {i}")));
    bytes.iter().enumerate().map(element).collect()
}

fn boolean(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::bad_model(format!("a boolean must be 0 or 1, is {byte}"))),
    }
}

fn strings(cursor: &mut ByteCursor<'_>, len: u64) -> Result<Strings> {
    check_room(cursor, len, 8)?;
    let mut out = Strings::with_capacity(len as usize);
    for i in 0..len {
        out.push(cursor.str(STRING_BYTES_MAX, "the string").map_err(|e| e.context(format!("element {i}")))?);
    }
    out.shrink_to_fit();
    Ok(out)
}

fn nested(cursor: &mut ByteCursor<'_>, len: u64, depth: usize, budget: &mut u64) -> Result<Vec<Array>> {
    if depth >= ARRAY_DEPTH_MAX {
        return Err(Error::bad_model(format!("arrays nest deeper than {ARRAY_DEPTH_MAX}")));
    }
    check_room(cursor, len, 4 + 8)?;
    let mut out = Vec::with_capacity(len as usize);
    for i in 0..len {
        out.push(read_array(cursor, depth + 1, budget).map_err(|e| e.context(format!("element {i}")))?);
    }
    Ok(out)
}

/// Refuses a count that the rest of the file cannot hold, before memory is reserved for it.
fn check_room(cursor: &ByteCursor<'_>, len: u64, bytes_min: u64) -> Result<()> {
    if len * bytes_min > cursor.remaining() {
        return Err(Error::bad_model(format!(
            "an array of {len} elements cannot fit into the {} bytes that are left",
            cursor.remaining()
        )));
    }
    Ok(())
}
