//! Numbers as people read them.

/// What came to a count by the second since it was `then`, `secs` ago.
pub fn rate(now: u64, then: u64, secs: f64) -> f64 {
    // Another process may have taken over: its counters begin anew.
    now.saturating_sub(then) as f64 / secs
}

/// `1234567` as `1,234,567`.
pub fn whole(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `123456` as `123,456`, and `1234567` as `1.23 M`.
pub fn short(count: u64) -> String {
    if count < 1_000_000 { whole(count) } else { scaled(count as f64) }
}

/// `1234567.0` as `1.23 M`, with the SI's prefixes.
pub fn scaled(value: f64) -> String {
    let mut value = value;
    for prefix in ["", " k", " M", " G"] {
        if value < 999.5 || prefix == " G" {
            let digits = match value {
                v if v < 9.995 && !prefix.is_empty() => 2,
                v if v < 99.95 && !prefix.is_empty() => 1,
                _ => 0,
            };
            return format!("{value:.digits$}{prefix}");
        }
        value /= 1000.0;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        let wholes = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (count, text) in wholes {
            assert_eq!(whole(count), text);
        }
        assert_eq!([short(999_999), short(1_000_000)], ["999,999", "1.00 M"]);
        for (value, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1.00 k"),
            (9_996.0, "10.0 k"),
            (123_456.0, "123 k"),
            (1_234_567.0, "1.23 M"),
            (5e12, "5000 G"),
        ] {
            assert_eq!(scaled(value), text);
        }
    }
}
