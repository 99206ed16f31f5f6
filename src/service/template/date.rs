//! `strftime_now` without a clock. A prompt that changes with the day would make the same request give other bytes
//! tomorrow, and the prefix cache miss at midnight. Templates that ask whether the function exists would fall back to
//! a date of their own; others call it unasked, so it exists and tells the day that Llama 3's template falls back to.

/// 26 July 2024, a Friday and the 208th day of its year, at midnight UTC.
pub(super) fn format_fixed_date(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // glibc's `%-d` leaves out the padding.
        let (bare, directive) = match chars.next() {
            Some('-') => (true, chars.next()),
            directive => (false, directive),
        };
        match directive.and_then(field) {
            Some(text) if bare => out.push_str(unpadded(text)),
            Some(text) => out.push_str(text),
            None => {
                out.push_str(if bare { "%-" } else { "%" });
                out.extend(directive);
            }
        }
    }
    out
}

fn unpadded(text: &str) -> &str {
    match text.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// The directives of C's `strftime` in its own locale.
fn field(directive: char) -> Option<&'static str> {
    Some(match directive {
        'Y' => "2024",
        'y' => "24",
        'm' => "07",
        'B' => "July",
        'b' | 'h' => "Jul",
        'd' | 'e' => "26",
        'j' => "208",
        'A' => "Friday",
        'a' => "Fri",
        'H' | 'M' | 'S' => "00",
        'I' => "12",
        'p' => "AM",
        'f' => "000000",
        'Z' => "UTC",
        'z' => "+0000",
        'F' => "2024-07-26",
        'T' | 'X' => "00:00:00",
        'D' | 'x' => "07/26/24",
        'c' => "Fri Jul 26 00:00:00 2024",
        'u' | 'w' => "5",
        'n' => "\n",
        't' => "\t",
        '%' => "%",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::format_fixed_date;

    #[test]
    fn tells_the_one_date() {
        assert_eq!(format_fixed_date("%d %b %Y"), "26 Jul 2024");
        assert_eq!(format_fixed_date("%A, %B %-d at %-H:%M"), "Friday, July 26 at 0:00");
        assert_eq!(format_fixed_date("100%% %Q %-Q %"), "100% %Q %-Q %");
    }
}
