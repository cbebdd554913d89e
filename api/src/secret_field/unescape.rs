//! The inside of a JSON string, byte by byte.

use super::ScanError;

/// What one byte of a string amounts to.
pub(super) enum Step {
    /// A piece of an escape; more must come.
    More,
    /// Bytes of the unescaped string.
    Char {
        /// UTF-8, from the front.
        bytes: [u8; 4],
        /// How many of them.
        len: usize,
    },
    /// The closing quote.
    End,
}

/// Where in an escape we are.
#[derive(Clone, Copy, Debug, Default)]
enum Mode {
    #[default]
    Plain,
    /// After a backslash.
    Escape,
    /// After `\u` and so many hexadecimal digits.
    Unit { digits: u8, unit: u16 },
}

/// Undoes the escapes of one JSON string.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unescape {
    mode: Mode,
    /// A high surrogate that waits for its low one.
    high: Option<u16>,
}

impl Unescape {
    pub(super) fn step(&mut self, byte: u8) -> Result<Step, ScanError> {
        match self.mode {
            Mode::Plain => self.plain(byte),
            Mode::Escape if byte == b'u' => {
                self.mode = Mode::Unit { digits: 0, unit: 0 };
                Ok(Step::More)
            }
            Mode::Escape => {
                let plain = match byte {
                    b'"' | b'\\' | b'/' => byte,
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return Err(ScanError::Malformed),
                };
                if self.high.is_some() {
                    return Err(ScanError::Malformed);
                }
                self.mode = Mode::Plain;
                Ok(single(plain))
            }
            Mode::Unit { digits, unit } => {
                let digit = char::from(byte).to_digit(16).ok_or(ScanError::Malformed)?;
                let unit = unit << 4 | u16::try_from(digit).map_err(|_| ScanError::Malformed)?;
                if digits < 3 {
                    self.mode = Mode::Unit {
                        digits: digits + 1,
                        unit,
                    };
                    return Ok(Step::More);
                }
                self.mode = Mode::Plain;
                self.unit(unit)
            }
        }
    }

    fn plain(&mut self, byte: u8) -> Result<Step, ScanError> {
        match byte {
            b'\\' => {
                self.mode = Mode::Escape;
                Ok(Step::More)
            }
            0..=0x1f => Err(ScanError::Malformed),
            _ if self.high.is_some() => Err(ScanError::Malformed),
            b'"' => Ok(Step::End),
            // Bytes of a longer UTF-8 sequence pass one by one; the whole is checked at its end.
            _ => Ok(single(byte)),
        }
    }

    fn unit(&mut self, unit: u16) -> Result<Step, ScanError> {
        let scalar = match (self.high.take(), unit) {
            (None, 0xd800..=0xdbff) => {
                self.high = Some(unit);
                return Ok(Step::More);
            }
            (Some(high), 0xdc00..=0xdfff) => {
                0x1_0000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(unit) - 0xdc00)
            }
            (Some(_), _) => return Err(ScanError::Malformed),
            (None, unit) => u32::from(unit),
        };
        let scalar = char::from_u32(scalar).ok_or(ScanError::Malformed)?;
        let mut bytes = [0; 4];
        let len = scalar.encode_utf8(&mut bytes).len();
        Ok(Step::Char { bytes, len })
    }
}

fn single(byte: u8) -> Step {
    Step::Char {
        bytes: [byte, 0, 0, 0],
        len: 1,
    }
}
