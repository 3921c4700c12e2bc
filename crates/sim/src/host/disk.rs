//! The agent's disk over a simulated one.

use std::io;
use std::sync::Arc;

use bascule_agent::host::{Disk, DiskGeometry, Extent};
use bascule_image::io::{ReadAt, Sink};

use super::SimBus;
use crate::disk::{Cache, Disk as Medium, Part};
use crate::layout::sector_of;

/// The whole disk and its partitions.
#[derive(Debug)]
pub struct SimDisk {
    medium: Medium,
    /// Told of writes to the partition table, to see whether shutdown was held back meanwhile.
    bus: Option<Arc<SimBus>>,
}

impl SimDisk {
    /// The device nodes of `medium`.
    pub fn new(medium: Medium, bus: Option<Arc<SimBus>>) -> Self {
        Self { medium, bus }
    }

    fn part(&self, number: u32, extent: Extent) -> io::Result<Part> {
        if extent.start.checked_add(extent.length).is_none_or(|end| end > self.medium.length()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("partition {number} ends after the disk")));
        }
        Ok(Part::new(self.medium.clone(), Cache(number), extent.start, extent.length))
    }
}

impl Disk for SimDisk {
    fn geometry(&self) -> io::Result<DiskGeometry> {
        Ok(DiskGeometry { length: self.medium.length(), sector: sector_of(&self.medium) })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read_direct(Cache::WHOLE, offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(bus) = &self.bus {
            bus.saw_write("the partition table");
        }
        self.medium.write_all(Cache::WHOLE, offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.medium.flush(Cache::WHOLE)
    }

    fn partition(&self, number: u32, extent: Extent) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(Opened { part: self.part(number, extent)?, direct: false }))
    }

    fn partition_direct(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(Opened { part: self.part(number, extent)?, direct: true }))
    }

    fn partition_read(&self, number: u32, extent: Extent) -> io::Result<Box<dyn ReadAt>> {
        Ok(Box::new(Opened { part: self.part(number, extent)?, direct: false }))
    }
}

/// An open device node of a partition.
#[derive(Debug)]
struct Opened {
    part: Part,
    direct: bool,
}

impl ReadAt for Opened {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.direct {
            // O_DIRECT refuses what is not aligned to the device's blocks; callers promise 4096.
            let aligned = offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096);
            let aligned = aligned && buffer.as_ptr().addr().is_multiple_of(4096);
            if !aligned {
                return Err(io::Error::from_raw_os_error(22));
            }
            return self.part.read_direct(offset, buffer);
        }
        self.part.read(offset, buffer)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.part.length())
    }
}

impl Sink for Opened {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.part.write_all(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.part.flush()
    }
}
