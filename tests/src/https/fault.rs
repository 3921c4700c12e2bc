//! The ways in which the server can be told to misbehave.

use std::time::Duration;

/// What happens to requests for a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status, with an empty body.
    Status(u16),
    /// This status for the first `times` requests, then the file.
    StatusTimes { status: u16, times: u32 },
    /// A redirect to this address.
    Redirect(String),
    /// Other bytes in place of the file.
    Replace(Vec<u8>),
    /// The file with one bit flipped at this offset of it.
    FlipBit(u64),
    /// The right file, and then zeros for ever, without a `Content-Length`.
    Endless,
    /// `bytes` at a time with `every` between them.
    Trickle { bytes: usize, every: Duration },
    /// Headers, and then nothing.
    Stall,
    /// The connection breaks after so many bytes of the body.
    BreakAfter(u64),
    /// The connection breaks after so many bytes of the body, but only so many times.
    BreakAfterTimes { bytes: u64, times: u32 },
    /// `Range` is ignored: 200 with the whole file.
    IgnoreRange,
    /// `If-Range` is answered with 200 and the whole file, whatever it says; `Range` alone with 206, as some caches do.
    IgnoreIfRange,
    /// Another ETag with each response, as if the file were replaced all the time.
    ChangingEtag,
    /// A `Content-Range` that starts one byte later than asked for.
    WrongRange,
}

impl Fault {
    /// Uses up one time of a fault that is limited; false when it is used up.
    pub(super) fn take(&mut self) -> bool {
        match self {
            Self::StatusTimes { times, .. } | Self::BreakAfterTimes { times, .. } => match times.checked_sub(1) {
                Some(left) => {
                    *times = left;
                    true
                }
                None => false,
            },
            _ => true,
        }
    }
}
