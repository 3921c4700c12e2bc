//! Creates one read-only device-mapper device by its ioctls (linux/dm-ioctl.h). The one place here with `unsafe`: the
//! kernel reads and writes the structures below.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::PathBuf;

use rustix::ioctl::{self, Opcode, Updater, opcode};

use crate::Error;

/// The version of the interface that is asked for; 4.0 has all of this.
const VERSION: [u32; 3] = [4, 0, 0];
const READ_ONLY: u32 = 1 << 0;
const CREATE: u8 = 3;
/// Suspends a device, or resumes it when the suspend flag is not set.
const SUSPEND: u8 = 6;
const LOAD_TABLE: u8 = 9;
const PARAMETERS: usize = 1024;

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_number: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_ioctl`, one `struct dm_target_spec`, and its parameters as a C string.
#[repr(C)]
struct Request {
    header: Header,
    start: u64,
    sectors: u64,
    status: i32,
    next: u32,
    target: [u8; 16],
    parameters: [u8; PARAMETERS],
}

const fn code(number: u8) -> Opcode {
    opcode::read_write::<Header>(0xfd, number)
}

/// Creates `/dev/dm-N` over a verity table and returns its path.
pub(crate) fn create_read_only(name: &str, uuid: &str, sectors: u64, table: &str) -> Result<PathBuf, Error> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")
        .map_err(Error::system("opening /dev/mapper/control"))?;
    let too_long = || Error::system("naming the verity device")(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    // Each call writes its answer over the request, sizes included: every step begins with a fresh one. Only the
    // first names the device by its UUID too.
    let mut created = request(name, uuid, sectors, table).ok_or_else(too_long)?;
    call::<{ code(CREATE) }>(&control, &mut created, "creating the verity device")?;
    let mut loaded = request(name, "", sectors, table).ok_or_else(too_long)?;
    loaded.header.target_count = 1;
    call::<{ code(LOAD_TABLE) }>(&control, &mut loaded, "loading the verity table")?;
    let mut started = request(name, "", sectors, table).ok_or_else(too_long)?;
    call::<{ code(SUSPEND) }>(&control, &mut started, "starting the verity device")?;
    let device = started.header.device;
    // The minor number: its low eight bits and, above the major's twelve, the rest (new_encode_dev).
    let minor = (device & 0xff) | ((device >> 12) & 0xff_ff00);
    Ok(PathBuf::from(format!("/dev/dm-{minor}")))
}

fn call<const CODE: Opcode>(control: &File, request: &mut Request, step: &str) -> Result<(), Error> {
    // SAFETY: each of these codes takes a `struct dm_ioctl` followed by `data_size` bytes in all, which is exactly
    // the size of `Request`; the kernel writes nothing past it.
    let done = unsafe { ioctl::ioctl(control, Updater::<CODE, Request>::new(request)) };
    done.map_err(Error::system(step))
}

fn request(name: &str, uuid: &str, sectors: u64, table: &str) -> Option<Request> {
    Some(Request {
        header: Header {
            version: VERSION,
            data_size: u32::try_from(size_of::<Request>()).ok()?,
            data_start: u32::try_from(size_of::<Header>()).ok()?,
            target_count: 0,
            open_count: 0,
            flags: READ_ONLY,
            event_number: 0,
            padding: 0,
            device: 0,
            name: terminated(name)?,
            uuid: terminated(uuid)?,
            data: [0; 7],
        },
        start: 0,
        sectors,
        status: 0,
        next: 0,
        target: terminated("verity")?,
        parameters: terminated(table)?,
    })
}

/// A C string in a fixed field; `None` when it does not fit with its NUL.
fn terminated<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut field = [0; N];
    field.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    (text.len() < N).then_some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Header>(), 312);
        assert_eq!(size_of::<Request>(), 312 + 40 + PARAMETERS);
    }

    #[test]
    fn strings_keep_their_terminator() {
        assert_eq!(terminated::<4>("abc"), Some(*b"abc\0"));
        assert_eq!(terminated::<4>("abcd"), None);
        assert_eq!(terminated::<4>("abcdef"), None);
    }
}
