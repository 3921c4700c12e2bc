//! A new file as a disk: it reads as zeros already, so zeros are not written and take no room.

use std::fs::File;
use std::io;

use bascule_gpt::{FileMedium, Geometry, Medium};

use crate::size::SectorSize;

/// What is left out at once: a file system's usual block.
const BLOCK: usize = 4096;

/// A file that was just made and given its length.
#[derive(Debug)]
pub(crate) struct NewFile<'a>(FileMedium<'a>);

impl<'a> NewFile<'a> {
    pub(crate) fn new(file: &'a File, sector: SectorSize) -> Self {
        Self(FileMedium { file, sector: sector.bytes().into() })
    }
}

impl Medium for NewFile<'_> {
    fn geometry(&self) -> io::Result<Geometry> {
        self.0.geometry()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let places = (offset..).step_by(BLOCK);
        for (at, block) in places.zip(bytes.chunks(BLOCK)).filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
            self.0.write(at, block)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}
