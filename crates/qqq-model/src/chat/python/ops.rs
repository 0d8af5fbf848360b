//! Operators: arithmetic, comparison, `in`, subscripts and slices.

use std::cmp::Ordering;

use minijinja::value::Value;

use super::objects::{Cycler, Function, Generator, Joiner, Macro, Namespace, Range, View, ViewKind};
use super::percent;
use super::repr::to_str;
use super::value::{
    Dict, Py, Result, as_float, as_int, as_size, check_size, fail, int, iterate, py, tuple, type_name,
    undefined,
};

/// Two values and an operator of arithmetic.
///
/// # Errors
/// Types that the operator does not take, division by zero, integers of more than 128 bits.
pub fn binary(left: &Value, op: &str, right: &Value) -> Result<Value> {
    if left.is_undefined() || right.is_undefined() {
        return undefined(&format!("the operator {op}"));
    }
    if left.is_safe() || right.is_safe() {
        return markup(left, op, right);
    }
    match (py(left), op, py(right)) {
        (Py::Str(a), "+", Py::Str(b)) => {
            check_size(a.len() + b.len())?;
            return Ok(Value::from([a, b].concat()));
        }
        (Py::Str(a), "%", _) => return percent::format(a, right).map(Value::from),
        (Py::List(a), "+", Py::List(b)) => return Ok(Value::from([a, b].concat())),
        (Py::Tuple(a), "+", Py::Tuple(b)) => return Ok(tuple([a, b].concat())),
        (Py::Str(_) | Py::List(_) | Py::Tuple(_), "*", Py::Bool(_) | Py::Int(_)) => {
            return repeat(left, right);
        }
        (Py::Bool(_) | Py::Int(_), "*", Py::Str(_) | Py::List(_) | Py::Tuple(_)) => {
            return repeat(right, left);
        }
        _ => {}
    }
    if let (Some(a), Some(b)) = (as_int(left), as_int(right)) {
        return integers(a, op, b);
    }
    if let (Some(a), Some(b)) = (as_float(left), as_float(right)) {
        return floats(a, op, b);
    }
    let (a, b) = (type_name(left), type_name(right));
    if op == "+" && matches!(a, "str" | "list" | "tuple") {
        return fail(format!("can only concatenate {a} (not \"{b}\") to {a}"));
    }
    fail(format!("unsupported operand type(s) for {op}: '{a}' and '{b}'"))
}

/// `Markup` (what `escape` and `safe` return) escapes what is put to it.
fn markup(left: &Value, op: &str, right: &Value) -> Result<Value> {
    let escaped = |v: &Value| -> Result<String> {
        Ok(match py(v) {
            Py::Str(text) if v.is_safe() => text.to_owned(),
            Py::Str(text) => crate::chat::filters::text::escape(text),
            _ => return fail(format!("can only concatenate str (not \"{}\") to Markup", type_name(v))),
        })
    };
    match op {
        "+" => Ok(Value::from_safe_string(escaped(left)? + &escaped(right)?)),
        _ => fail(format!("the operator {op} of an escaped string (Markup) is not supported")),
    }
}

fn repeat(value: &Value, count: &Value) -> Result<Value> {
    let n = as_size(count)?;
    let size = |len: usize| check_size(len.saturating_mul(n));
    match py(value) {
        Py::Str(text) => size(text.len()).map(|_| Value::from(text.repeat(n))),
        Py::List(items) => size(items.len()).map(|_| Value::from(repeated(items, n))),
        Py::Tuple(items) => size(items.len()).map(|_| tuple(repeated(items, n))),
        _ => fail("this value cannot be repeated"),
    }
}

fn repeated(items: &[Value], n: usize) -> Vec<Value> {
    std::iter::repeat_n(items, n).flatten().cloned().collect()
}

fn integers(a: i128, op: &str, b: i128) -> Result<Value> {
    let floor = |a: i128, b: i128| {
        let (q, r) = (a.checked_div(b)?, a.checked_rem(b)?);
        let down = r != 0 && (r < 0) != (b < 0);
        Some((q - i128::from(down), if down { r + b } else { r }))
    };
    let result = match op {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" | "//" | "%" if b == 0 => return fail("division by zero"),
        "/" => {
            let exact = 1i128 << 53;
            if a.abs() > exact || b.abs() > exact {
                return fail("division of integers beyond 2**53 is not supported");
            }
            return Ok(Value::from(a as f64 / b as f64));
        }
        "//" => floor(a, b).map(|(q, _)| q),
        "%" => floor(a, b).map(|(_, r)| r),
        "**" if b < 0 && a == 0 => return fail("0.0 cannot be raised to a negative power"),
        "**" if b < 0 => return Ok(Value::from((a as f64).powf(b as f64))),
        _ => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(b)) => a.checked_pow(b),
            _ => None,
        },
    };
    match result {
        Some(n) => Ok(int(n)),
        None => fail(format!("{a} {op} {b}: integers of more than 128 bits are not supported")),
    }
}

fn floats(a: f64, op: &str, b: f64) -> Result<Value> {
    let modulo = || {
        let mut r = a % b;
        if r == 0.0 {
            r = 0f64.copysign(b);
        } else if (r < 0.0) != (b < 0.0) {
            r += b;
        }
        r
    };
    Ok(Value::from(match op {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" | "//" | "%" if b == 0.0 => return fail("float division by zero"),
        "/" => a / b,
        "%" => modulo(),
        "//" => {
            let quotient = (a - a % b) / b;
            let quotient = if a % b != 0.0 && (a % b < 0.0) != (b < 0.0) { quotient - 1.0 } else { quotient };
            if quotient == 0.0 {
                0f64.copysign(a / b)
            } else if quotient - quotient.floor() > 0.5 {
                quotient.floor() + 1.0
            } else {
                quotient.floor()
            }
        }
        _ if a == 0.0 && b < 0.0 => return fail("0.0 cannot be raised to a negative power"),
        _ if a < 0.0 && b.is_finite() && b.fract() != 0.0 => {
            return fail("complex numbers (a negative number to a fractional power) are not supported");
        }
        _ => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return fail("the result of ** is too large");
            }
            power
        }
    }))
}

/// `-a` and `+a`.
///
/// # Errors
/// It is no number.
pub fn sign(minus: bool, value: &Value) -> Result<Value> {
    let factor = if minus { -1 } else { 1 };
    match py(value) {
        Py::Undefined => undefined("the sign"),
        Py::Float(x) => Ok(Value::from(if minus { -x } else { x })),
        Py::Bool(b) => Ok(int(factor * i128::from(b))),
        Py::Int(n) => n.checked_mul(factor).map_or_else(|| fail("the integer is too large"), |n| Ok(int(n))),
        _ => {
            let op = if minus { '-' } else { '+' };
            fail(format!("bad operand type for unary {op}: '{}'", type_name(value)))
        }
    }
}

/// Python's `==`.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (py(a), py(b)) {
        (Py::Undefined, Py::Undefined) | (Py::None, Py::None) => true,
        (Py::Str(a), Py::Str(b)) => a == b,
        (Py::List(a), Py::List(b)) | (Py::Tuple(a), Py::Tuple(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Py::Dict(a), Py::Dict(b)) => {
            let same = |(k, v): &(Value, Value)| b.get(k).is_ok_and(|o| o.is_some_and(|o| equal(v, o)));
            a.entries.len() == b.entries.len() && a.entries.iter().all(same)
        }
        (Py::Other, Py::Other) => objects(a, b),
        _ => numbers(a, b) == Some(Ordering::Equal),
    }
}

/// `==` of objects: ranges and views by what they have, others only with themselves.
fn objects(a: &Value, b: &Value) -> bool {
    fn same<T: 'static>(a: &Value, b: &Value) -> bool {
        match (a.downcast_object_ref::<T>(), b.downcast_object_ref::<T>()) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            _ => false,
        }
    }
    if let (Some(x), Some(y)) = (a.downcast_object_ref::<Range>(), b.downcast_object_ref::<Range>()) {
        return x.items() == y.items();
    }
    if let (Some(x), Some(y)) = (a.downcast_object_ref::<View>(), b.downcast_object_ref::<View>()) {
        let within = |x: &View, y: &View| {
            x.dict.entries.iter().all(|(k, v)| match y.dict.get(k) {
                Ok(Some(other)) => x.kind == ViewKind::Keys || equal(v, other),
                _ => false,
            })
        };
        return std::ptr::eq(x, y)
            || (x.kind == y.kind && x.kind != ViewKind::Values && within(x, y) && within(y, x));
    }
    same::<Generator>(a, b)
        || same::<Namespace>(a, b)
        || same::<Macro>(a, b)
        || same::<Function>(a, b)
        || same::<Joiner>(a, b)
        || same::<Cycler>(a, b)
}

fn numbers(a: &Value, b: &Value) -> Option<Ordering> {
    match (as_int(a), as_int(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => as_float(a)?.partial_cmp(&as_float(b)?),
    }
}

/// Python's `a < b` and its like.
///
/// # Errors
/// Types that have no order.
pub fn ordered(a: &Value, op: &str, b: &Value) -> Result<bool> {
    let holds = |o: Ordering| match op {
        "<" => o.is_lt(),
        "<=" => o.is_le(),
        ">" => o.is_gt(),
        _ => o.is_ge(),
    };
    match (py(a), py(b)) {
        (Py::Undefined, _) | (_, Py::Undefined) => undefined(&format!("the operator {op}")),
        (Py::Str(a), Py::Str(b)) => Ok(holds(a.cmp(b))),
        (Py::List(x), Py::List(y)) | (Py::Tuple(x), Py::Tuple(y)) => {
            match x.iter().zip(y).find(|(a, b)| !equal(a, b)) {
                Some((a, b)) => ordered(a, op, b),
                None => Ok(holds(x.len().cmp(&y.len()))),
            }
        }
        _ if as_float(a).is_some() && as_float(b).is_some() => Ok(numbers(a, b).is_some_and(holds)),
        _ => {
            let (a, b) = (type_name(a), type_name(b));
            fail(format!("'{op}' not supported between instances of '{a}' and '{b}'"))
        }
    }
}

/// All comparisons.
///
/// # Errors
/// Types that have no order, or that contain nothing.
pub fn compare(a: &Value, op: &str, b: &Value) -> Result<bool> {
    match op {
        "==" => Ok(equal(a, b)),
        "!=" => Ok(!equal(a, b)),
        "in" => contains(b, a),
        "not in" => contains(b, a).map(|found| !found),
        _ => ordered(a, op, b),
    }
}

fn contains(container: &Value, item: &Value) -> Result<bool> {
    match py(container) {
        Py::Str(text) => match py(item) {
            Py::Str(part) => Ok(text.contains(part)),
            Py::Undefined => undefined("`in`"),
            _ => fail(format!("'in <string>' requires string as left operand, not {}", type_name(item))),
        },
        Py::Dict(dict) => Ok(dict.get(item)?.is_some()),
        _ => {
            if let Some(view) = container.downcast_object_ref::<View>()
                && view.kind == ViewKind::Keys
            {
                return Ok(view.dict.get(item)?.is_some());
            }
            if let Some(generator) = container.downcast_object_ref::<Generator>() {
                while let Some(next) = generator.next()? {
                    if equal(&next, item) {
                        return Ok(true);
                    }
                }
                return Ok(false);
            }
            if !matches!(py(container), Py::Undefined | Py::List(_) | Py::Tuple(_))
                && iterate(container).is_err()
            {
                return fail(format!("argument of type '{}' is not iterable", type_name(container)));
            }
            Ok(iterate(container)?.iter().any(|v| equal(v, item)))
        }
    }
}

/// `value[key]` if it exists.
///
/// # Errors
/// The value is undefined.
pub fn subscript(value: &Value, key: &Value) -> Result<Option<Value>> {
    let at = |len: usize| {
        let i = as_int(key)?;
        let i = if i < 0 { i + len as i128 } else { i };
        usize::try_from(i).ok().filter(|i| *i < len)
    };
    Ok(match py(value) {
        Py::Undefined => return undefined("an item"),
        Py::Str(text) => {
            at(text.chars().count()).and_then(|i| text.chars().nth(i)).map(|c| Value::from(c.to_string()))
        }
        Py::List(items) | Py::Tuple(items) => at(items.len()).map(|i| items[i].clone()),
        Py::Dict(dict) => dict.get(key).ok().flatten().cloned(),
        _ => value
            .downcast_object_ref::<Range>()
            .and_then(|range| at(range.len()).map(|i| int(range.start + i as i128 * range.step))),
    })
}

/// `value[start:stop:step]`.
///
/// # Errors
/// The value is undefined or has no order, a bound is no integer, or the step is 0.
pub fn slice(value: &Value, bounds: [&Value; 3]) -> Result<Value> {
    if value.is_undefined() {
        return undefined("a slice");
    }
    let (mut numbers, mut good) = ([None; 3], true);
    for (slot, bound) in numbers.iter_mut().zip(bounds) {
        *slot = as_int(bound);
        good &= slot.is_some() || bound.is_none();
    }
    match py(value) {
        Py::Str(_) | Py::List(_) | Py::Tuple(_) => {}
        Py::Dict(_) => return fail("unhashable type: 'slice'"),
        _ if value.downcast_object_ref::<Range>().is_some() => {
            return fail("slices of a range are not supported");
        }
        _ => return fail(format!("'{}' object is not subscriptable", type_name(value))),
    }
    if !good {
        return fail("slice indices must be integers or None");
    }
    if numbers[2] == Some(0) {
        return fail("slice step cannot be zero");
    }
    Ok(match py(value) {
        Py::Str(text) => {
            let chars: Vec<char> = text.chars().collect();
            let part: String = indices(chars.len(), numbers).map(|i| chars[i]).collect();
            if value.is_safe() { Value::from_safe_string(part) } else { Value::from(part) }
        }
        Py::List(items) => {
            Value::from(indices(items.len(), numbers).map(|i| items[i].clone()).collect::<Vec<_>>())
        }
        Py::Tuple(items) => tuple(indices(items.len(), numbers).map(|i| items[i].clone()).collect()),
        _ => Value::UNDEFINED,
    })
}

/// The indices of a slice of something of a length.
fn indices(len: usize, [start, stop, step]: [Option<i128>; 3]) -> impl Iterator<Item = usize> {
    let (len, step) = (len as i128, step.unwrap_or(1));
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(b) if b < 0 => (b.saturating_add(len)).max(low),
        Some(b) => b.min(high),
    };
    let (start, stop) =
        if step > 0 { (clamp(start, 0), clamp(stop, len)) } else { (clamp(start, len - 1), clamp(stop, -1)) };
    let mut at = start;
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < stop } else { at > stop };
        let index = usize::try_from(at).ok().filter(|_| inside)?;
        at = at.saturating_add(step);
        Some(index)
    })
}

/// `a ~ b`: the texts of both.
///
/// # Errors
/// A value whose text is another at each run.
pub fn concat(parts: &[Value]) -> Result<Value> {
    let mut out = String::new();
    for part in parts {
        out += &to_str(part)?;
    }
    check_size(out.len())?;
    Ok(Value::from(out))
}

/// Sorts as `sorted` does: stable, and the order of equal items stays if it is reversed.
///
/// # Errors
/// Keys that have no order.
pub fn sort<T>(items: &mut [(Value, T)], reverse: bool) -> Result<()> {
    let mut error = None;
    let mut order = |a: &Value, b: &Value| {
        let less = |a: &Value, b: &Value| ordered(a, "<", b);
        match (less(a, b), less(b, a)) {
            (Ok(true), _) => Ordering::Less,
            (Ok(false), Ok(true)) => Ordering::Greater,
            (Ok(false), Ok(false)) => Ordering::Equal,
            (Err(e), _) | (_, Err(e)) => {
                error.get_or_insert(e);
                Ordering::Equal
            }
        }
    };
    if reverse {
        items.reverse();
    }
    items.sort_by(|(a, _), (b, _)| order(a, b));
    if reverse {
        items.reverse();
    }
    error.map_or(Ok(()), Err)
}

/// A dictionary from pairs of keys and values in a row.
///
/// # Errors
/// A key is not hashable.
pub fn dict(items: &[Value]) -> Result<Value> {
    let mut dict = Dict::default();
    for pair in items.chunks_exact(2) {
        dict.insert(pair[0].clone(), pair[1].clone())?;
    }
    Ok(Value::from_object(dict))
}
