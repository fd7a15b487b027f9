//! A bound on `multipleOf`: the grammar counts remainders, so a large one would keep its compiler busy for minutes.

use serde_json::{Number, Value};

/// The most remainders to tell apart: of the least common multiple of all that the schema names, as any of them may meet.
const MAX_REMAINDERS: u64 = 1_000;
/// The most decimal places of one.
const MAX_PLACES: usize = 6;

/// Refuses a schema whose multiples are too large or too fine, and says so.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut common = 1;
    let refused =
        || format!("its `multipleOf` have a common multiple beyond {MAX_REMAINDERS}, or over {MAX_PLACES} places");
    if visit(schema, &mut common) { Ok(()) } else { Err(refused()) }
}

/// Whether all multiples in `schema`, together with `common`, are within the bounds.
fn visit(schema: &Value, common: &mut u64) -> bool {
    match schema {
        Value::Array(schemas) => schemas.iter().all(|schema| visit(schema, common)),
        Value::Object(fields) => {
            let own = match fields.get("multipleOf") {
                Some(Value::Number(multiple)) => join(common, multiple),
                _ => true,
            };
            own && fields.values().all(|schema| visit(schema, common))
        }
        _ => true,
    }
}

fn join(common: &mut u64, multiple: &Number) -> bool {
    let Some(multiple) = digits(&multiple.to_string()) else { return false };
    *common = *common / greatest_common_divisor(*common, multiple) * multiple;
    *common <= MAX_REMAINDERS
}

/// A positive decimal number without its point, if it is one of few digits.
fn digits(decimal: &str) -> Option<u64> {
    let (whole, places) = decimal.split_once('.').unwrap_or((decimal, ""));
    if places.len() > MAX_PLACES || whole.len() > MAX_PLACES {
        return None;
    }
    let places = if places == "0" { "" } else { places };
    format!("{whole}{places}").parse().ok().filter(|&digits| digits > 0)
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}
