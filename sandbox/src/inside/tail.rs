//! The end of an output that may be endless.

use std::collections::VecDeque;

/// Keeps the last bytes and counts the rest.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    limit: usize,
    dropped: u64,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
            dropped: 0,
        }
    }

    pub(super) fn push(&mut self, more: &[u8]) {
        self.bytes.extend(more);
        let over = self.bytes.len().saturating_sub(self.limit);
        if over > 0 {
            self.bytes.drain(..over);
            self.dropped += over as u64;
        }
    }

    /// Takes what is kept, as text, after a line that says how much is not.
    pub(super) fn take_text(&mut self) -> String {
        let kept: Vec<u8> = self.bytes.drain(..).collect();
        let dropped = std::mem::take(&mut self.dropped);
        let text = printable(&kept);
        if dropped == 0 {
            text
        } else {
            format!("[{dropped} bytes of earlier output dropped]\n{text}")
        }
    }
}

/// Bytes as text that every store can hold: no invalid sequence, no NUL.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::Tail;

    #[test]
    fn keeps_the_end_and_says_what_is_gone() {
        let mut tail = Tail::new(4);
        tail.push(b"abcdef");
        tail.push(b"gh");
        assert_eq!(
            tail.take_text(),
            "[4 bytes of earlier output dropped]\nefgh"
        );
        tail.push(b"x\0");
        assert_eq!(tail.take_text(), "x\u{fffd}");
    }
}
