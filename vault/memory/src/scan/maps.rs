//! The mappings of a process as the kernel lists them.

use std::ops::Range;

use crate::error::MemoryError;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) addresses: Range<usize>,
    pub(super) readable: bool,
    pub(super) name: String,
}

pub(super) fn of(path: &str) -> Result<Vec<Area>, MemoryError> {
    let text =
        std::fs::read_to_string(path).map_err(MemoryError::system("read(/proc/PID/maps)"))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// Parses `7f00-7f10 rw-p 00000000 fd:00 123   /path`.
fn parse(line: &str) -> Option<Area> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let addresses = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let readable = words.next()?.starts_with('r');
    let name = words.nth(3).unwrap_or_default().trim().to_owned();
    Some(Area {
        addresses,
        readable,
        name,
    })
}

/// The parts of `whole` that none of `excluded` covers.
pub(super) fn without(whole: &Range<usize>, excluded: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut pieces = vec![whole.clone()];
    for hole in excluded {
        pieces = pieces
            .into_iter()
            .flat_map(|piece| {
                [
                    piece.start..piece.end.min(hole.start.max(piece.start)),
                    piece.start.max(hole.end.min(piece.end))..piece.end,
                ]
            })
            .filter(|piece| !piece.is_empty())
            .collect();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let area = parse(
            "7ffd2f1c4000-7ffd2f1e5000 rw-p 00000000 00:00 0                          [stack]",
        )
        .unwrap();
        assert_eq!(
            area,
            Area {
                addresses: 0x7ffd_2f1c_4000..0x7ffd_2f1e_5000,
                readable: true,
                name: "[stack]".into()
            }
        );
        let area =
            parse("00400000-00452000 ---p 00000000 08:02 173521      /usr/bin/with space").unwrap();
        assert!(!area.readable);
        assert_eq!(area.name, "/usr/bin/with space");
        assert!(
            parse("00400000-00452000 r--p 00000000 08:02 0")
                .unwrap()
                .name
                .is_empty()
        );
        assert!(parse("nonsense").is_none());
    }

    #[test]
    fn holes_are_cut_out() {
        assert_eq!(without(&(10..20), &[]), vec![10..20]);
        assert_eq!(without(&(10..20), &[0..5, 30..40]), vec![10..20]);
        assert_eq!(without(&(10..20), &[12..14, 18..30]), vec![10..12, 14..18]);
        assert!(without(&(10..20), &[5..25, 0..1]).is_empty());
        assert_eq!(without(&(10..20), &[10..11, 19..20]), vec![11..19]);
    }
}
