//! `datetime.now().strftime`: local time, in the C locale, without a time zone's name.

use std::fmt::Write;

use chrono::{Datelike, NaiveDateTime, TimeZone, Timelike};

use super::value::{Result, fail};

/// What Python's `strftime` makes of a time without a zone, on Linux.
///
/// # Errors
/// A directive that it does not have.
pub fn strftime(now: &NaiveDateTime, format: &str) -> Result<String> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        let mut directive = chars.next();
        while let Some(flag) = directive.filter(|c| "-_0^#".contains(*c)) {
            flags.push(flag);
            directive = chars.next();
        }
        let unknown = |d: Option<char>| {
            let d = d.map(String::from).unwrap_or_default();
            fail(format!("strftime_now: the directive %{flags}{d} is not supported"))
        };
        let Some(directive) = directive else { return unknown(None) };
        let text = match directive {
            'z' | 'Z' if flags.is_empty() => String::new(),
            'f' if flags.is_empty() => format!("{:06}", now.nanosecond() / 1000 % 1_000_000),
            's' if flags.is_empty() => {
                let local = chrono::Local.from_local_datetime(now).earliest();
                local.map_or(now.and_utc().timestamp(), |t| t.timestamp()).to_string()
            }
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            'a' | 'A' | 'b' | 'B' | 'C' | 'c' | 'D' | 'd' | 'e' | 'F' | 'G' | 'g' | 'H' | 'h' | 'I' | 'j'
            | 'k' | 'l' | 'M' | 'm' | 'P' | 'p' | 'R' | 'r' | 'S' | 'T' | 'U' | 'u' | 'V' | 'W' | 'w'
            | 'X' | 'x' | 'Y' | 'y' => flagged(now, directive, &flags)?,
            other => return unknown(Some(other)),
        };
        out += &text;
    }
    Ok(out)
}

/// A directive with its flags: `-` no padding, `_` spaces, `0` zeros, `^` capitals, `#` the other case.
fn flagged(now: &NaiveDateTime, directive: char, flags: &str) -> Result<String> {
    let number = |n: i64, width: usize, pad: char| match flags
        .chars()
        .rfind(|c| "-_0".contains(*c))
        .map_or(pad, |f| if f == '_' { ' ' } else { f })
    {
        '-' => n.to_string(),
        ' ' => format!("{n:width$}"),
        _ => format!("{n:0width$}"),
    };
    let hour12 = i64::from((now.hour() + 11) % 12 + 1);
    let text = match directive {
        'C' => number(i64::from(now.year() / 100), 2, '0'),
        'd' => number(now.day().into(), 2, '0'),
        'e' => number(now.day().into(), 2, ' '),
        'G' => number(now.iso_week().year().into(), 4, '0'),
        'g' => number(i64::from(now.iso_week().year() % 100), 2, '0'),
        'H' => number(now.hour().into(), 2, '0'),
        'I' => number(hour12, 2, '0'),
        'j' => number(now.ordinal().into(), 3, '0'),
        'k' => number(now.hour().into(), 2, ' '),
        'l' => number(hour12, 2, ' '),
        'M' => number(now.minute().into(), 2, '0'),
        'm' => number(now.month().into(), 2, '0'),
        'S' => number(now.second().into(), 2, '0'),
        'U' => number(i64::from((now.ordinal() + 6 - now.weekday().num_days_from_sunday()) / 7), 2, '0'),
        'u' => number(now.weekday().number_from_monday().into(), 1, '0'),
        'V' => number(now.iso_week().week().into(), 2, '0'),
        'W' => number(i64::from((now.ordinal() + 6 - now.weekday().num_days_from_monday()) / 7), 2, '0'),
        'w' => number(now.weekday().num_days_from_sunday().into(), 1, '0'),
        'Y' => number(now.year().into(), 4, '0'),
        'y' => number(i64::from(now.year() % 100), 2, '0'),
        _ => {
            let mut text = String::new();
            let whole = match directive {
                'c' => "%a %b %e %H:%M:%S %Y".to_owned(),
                'x' => "%m/%d/%y".to_owned(),
                'X' => "%H:%M:%S".to_owned(),
                'r' => "%I:%M:%S %p".to_owned(),
                other => format!("%{other}"),
            };
            if write!(text, "{}", now.format(&whole)).is_err() {
                return fail(format!("strftime_now: the directive %{directive} is not supported"));
            }
            if flags.contains(['-', '_', '0']) {
                return fail(format!("strftime_now: the directive %{flags}{directive} is not supported"));
            }
            text
        }
    };
    Ok(if flags.contains('^') || (flags.contains('#') && matches!(directive, 'a' | 'A' | 'b' | 'B' | 'h')) {
        text.to_uppercase()
    } else if flags.contains('#') && directive == 'p' {
        text.to_lowercase()
    } else {
        text
    })
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// `datetime(...).strftime(...)` of Python 3.11 on Linux.
    #[test]
    fn dates_are_those_of_python() {
        let all = "%A %a %d %B %b %Y %y-%m %H:%M:%S %I %p|%e|%-d|%j|%c|%U %W %G %V %u %w|%f|%D %R %T %x %X|%C %h %k %l %P %r|%g|%-m/%_d/%-H %^a %#p %#b|%z%Z%n%t%%|%-j %-I %_H";
        for ((seconds, micro), expected) in [
            (
                (0, 0),
                "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12 AM| 1|1|001|Thu Jan  1 00:00:00 1970|00 00 1970 01 4 4|000000|01/01/70 00:00 00:00:00 01/01/70 00:00:00|19 Jan  0 12 am 12:00:00 AM|70|1/ 1/0 THU am JAN|\n\t%|1 12  0",
            ),
            (
                (951782400, 5),
                "Tuesday Tue 29 February Feb 2000 00-02 00:00:00 12 AM|29|29|060|Tue Feb 29 00:00:00 2000|09 09 2000 09 2 2|000005|02/29/00 00:00 00:00:00 02/29/00 00:00:00|20 Feb  0 12 am 12:00:00 AM|00|2/29/0 TUE am FEB|\n\t%|60 12  0",
            ),
            (
                (1732284671, 123456),
                "Friday Fri 22 November Nov 2024 24-11 14:11:11 02 PM|22|22|327|Fri Nov 22 14:11:11 2024|46 47 2024 47 5 5|123456|11/22/24 14:11 14:11:11 11/22/24 14:11:11|20 Nov 14  2 pm 02:11:11 PM|24|11/22/14 FRI pm NOV|\n\t%|327 2 14",
            ),
            (
                (4107542399, 999999),
                "Sunday Sun 28 February Feb 2100 00-02 23:59:59 11 PM|28|28|059|Sun Feb 28 23:59:59 2100|09 08 2100 08 7 0|999999|02/28/00 23:59 23:59:59 02/28/00 23:59:59|21 Feb 23 11 pm 11:59:59 PM|00|2/28/23 SUN pm FEB|\n\t%|59 11 23",
            ),
            (
                (1104537600, 42),
                "Saturday Sat 01 January Jan 2005 05-01 00:00:00 12 AM| 1|1|001|Sat Jan  1 00:00:00 2005|00 00 2004 53 6 6|000042|01/01/05 00:00 00:00:00 01/01/05 00:00:00|20 Jan  0 12 am 12:00:00 AM|04|1/ 1/0 SAT am JAN|\n\t%|1 12  0",
            ),
            (
                (1230768000, 0),
                "Thursday Thu 01 January Jan 2009 09-01 00:00:00 12 AM| 1|1|001|Thu Jan  1 00:00:00 2009|00 00 2009 01 4 4|000000|01/01/09 00:00 00:00:00 01/01/09 00:00:00|20 Jan  0 12 am 12:00:00 AM|09|1/ 1/0 THU am JAN|\n\t%|1 12  0",
            ),
            (
                (1293840000, 7),
                "Saturday Sat 01 January Jan 2011 11-01 00:00:00 12 AM| 1|1|001|Sat Jan  1 00:00:00 2011|00 00 2010 52 6 6|000007|01/01/11 00:00 00:00:00 01/01/11 00:00:00|20 Jan  0 12 am 12:00:00 AM|10|1/ 1/0 SAT am JAN|\n\t%|1 12  0",
            ),
            (
                (1736035200, 1),
                "Sunday Sun 05 January Jan 2025 25-01 00:00:00 12 AM| 5|5|005|Sun Jan  5 00:00:00 2025|01 00 2025 01 7 0|000001|01/05/25 00:00 00:00:00 01/05/25 00:00:00|20 Jan  0 12 am 12:00:00 AM|25|1/ 5/0 SUN am JAN|\n\t%|5 12  0",
            ),
        ] {
            let now = chrono::DateTime::from_timestamp(seconds, micro * 1000).unwrap().naive_utc();
            assert_eq!(strftime(&now, all).unwrap(), expected);
        }
    }

    #[test]
    fn unknown_directives_are_named() {
        let now = chrono::DateTime::from_timestamp(0, 0).unwrap().naive_utc();
        for format in ["%Q", "a %-Q", "%", "%Ey", "%5d"] {
            let message = strftime(&now, format).unwrap_err().to_string();
            assert!(message.contains("directive %"), "{message}");
        }
        assert!(strftime(&now, "a %-Q").unwrap_err().to_string().contains("%-Q"));
    }
}
