//! Bytes as hex digits.

use std::fmt::Write;

use thiserror::Error;

/// A text that isn't bytes in hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HexError {
    /// A character that is none.
    #[error("{0:?} is no hex digit: expected bytes as in 5254001234560800")]
    Digit(char),
    /// A half byte at the end.
    #[error("{0} hex digits are no whole bytes: expected two for each")]
    Odd(usize),
}

/// `[0x52, 0x54]` as `5254`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A string takes all that is written.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The inverse of [`encode`], in either case.
///
/// # Errors
///
/// [`HexError`]
pub fn decode(text: &str) -> Result<Vec<u8>, HexError> {
    let digit = |c: char| c.to_digit(16).map(|digit| digit as u8).ok_or(HexError::Digit(c));
    let digits = text.chars().map(digit).collect::<Result<Vec<_>, _>>()?;
    if !digits.len().is_multiple_of(2) {
        return Err(HexError::Odd(digits.len()));
    }
    let byte = |pair: &[u8]| pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    Ok(digits.chunks(2).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_other_text_is_refused() {
        assert_eq!(encode(&[0, 0x5a, 0xff]), "005aff");
        assert_eq!(decode("005aFF"), Ok(vec![0, 0x5a, 0xff]));
        assert_eq!(decode(""), Ok(vec![]));
        assert_eq!(decode("005"), Err(HexError::Odd(3)));
        assert_eq!(decode("0x"), Err(HexError::Digit('x')));
        assert_eq!(decode("+1é"), Err(HexError::Digit('+')));
    }
}
