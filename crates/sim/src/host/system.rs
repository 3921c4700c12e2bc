//! The rest of the agent's host in one process: firmware variables, system bus, clock, facts of the start, state folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bascule_agent::host::{
    BusError, Clock, Firmware, Inhibition, Inhibitor, Pressure, Space, StateStore, SystemBus, SystemInfo, UnitRun,
    UnitState,
};
use bascule_names::Architecture;
use chrono::{DateTime, TimeDelta, Utc};

use crate::disk::{Cache, Disk};
use crate::firmware::Variables;
use crate::layout::{STATE, Slot, Table};
use crate::machine::System;
use crate::machine::root::PartReader;
use crate::tiny;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values: a panic elsewhere leaves them as good as they were.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// EFI variables as one start left them.
#[derive(Debug)]
pub struct SimFirmware(pub Variables);

impl Firmware for SimFirmware {
    fn variable_of(&self, vendor: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.bytes_of(vendor, name).map(<[u8]>::to_vec))
    }
}

/// A wall clock and a time since boot that move only when they are told to.
#[derive(Debug)]
pub struct SimClock {
    now: Mutex<(DateTime<Utc>, Duration)>,
}

impl SimClock {
    /// Just started, at this time of day.
    pub fn starting_at(now: DateTime<Utc>) -> Self {
        Self { now: Mutex::new((now, Duration::ZERO)) }
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        let mut now = locked(&self.now);
        now.0 += TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX);
        now.1 += time;
    }

    /// Somebody sets the wall clock; the time since boot stays.
    pub fn jump(&self, by: TimeDelta) {
        locked(&self.now).0 += by;
    }

    /// The machine starts again: time since boot is zero, the wall clock stays.
    pub fn restart(&self) {
        locked(&self.now).1 = Duration::ZERO;
    }
}

impl Clock for SimClock {
    fn now(&self) -> DateTime<Utc> {
        locked(&self.now).0
    }

    fn since_boot(&self) -> Duration {
        locked(&self.now).1
    }
}

/// What one start of the machine says of itself.
#[derive(Clone, Debug)]
pub struct SimSystem {
    boot_id: String,
    command_line: String,
    os_release: String,
    /// Where its image lies, as far as that is a disk's.
    image: Option<(Disk, Slot)>,
    pressure: Arc<Mutex<Option<Pressure>>>,
    units: Arc<Mutex<BTreeSet<String>>>,
}

impl SimSystem {
    /// Of a system that was started.
    pub fn of(system: &System) -> Self {
        Self::new(&system.boot_id.to_string(), &system.command_line, &system.os_release)
    }

    /// From its parts.
    pub fn new(boot_id: &str, command_line: &str, os_release: &str) -> Self {
        Self {
            boot_id: boot_id.to_owned(),
            command_line: command_line.to_owned(),
            os_release: os_release.to_owned(),
            image: None,
            pressure: Arc::default(),
            units: Arc::default(),
        }
    }

    /// The OS image has a file for this unit.
    pub fn bring_unit(&self, unit: &str) {
        locked(&self.units).insert(unit.to_owned());
    }

    /// The same, with the image that it runs from.
    #[must_use]
    pub fn with_image(self, disk: &Disk, slot: Slot) -> Self {
        Self { image: Some((disk.clone(), slot)), ..self }
    }

    /// From now on the kernel tells this pressure.
    pub fn set_pressure(&self, pressure: Option<Pressure>) {
        *locked(&self.pressure) = pressure;
    }
}

impl SystemInfo for SimSystem {
    fn boot_id(&self) -> io::Result<String> {
        Ok(self.boot_id.clone())
    }

    fn command_line(&self) -> io::Result<String> {
        Ok(self.command_line.clone())
    }

    fn os_release(&self) -> io::Result<String> {
        Ok(self.os_release.clone())
    }

    fn boot_loaders(&self, _: Architecture) -> io::Result<Vec<Vec<u8>>> {
        let Some((disk, slot)) = &self.image else { return Ok(Vec::new()) };
        let image = PartReader(Table::read(disk)?.part(slot.data())?);
        Ok(tiny::loader_of_image(&image)?.into_iter().collect())
    }

    fn pressure(&self) -> io::Result<Option<Pressure>> {
        Ok(*locked(&self.pressure))
    }

    fn has_unit(&self, unit: &str) -> io::Result<bool> {
        Ok(locked(&self.units).contains(unit))
    }
}

/// logind and systemd: keeps what was asked.
#[derive(Debug, Default)]
pub struct SimBus {
    /// Somebody else's inhibitors.
    pub others: Mutex<Vec<Inhibitor>>,
    /// States of units; an unknown one is not found.
    pub units: Mutex<BTreeMap<String, UnitState>>,
    /// How units end that are run; an unknown one is not there.
    pub runs: Mutex<BTreeMap<String, UnitRun>>,
    /// There is no bus.
    pub gone: AtomicBool,
    /// Logind may be asked, and systemd not.
    pub logind_alone: AtomicBool,
    ran: Mutex<Vec<String>>,
    held: Arc<AtomicUsize>,
    reboots: Mutex<Vec<String>>,
    unguarded: Mutex<Vec<String>>,
}

impl SimBus {
    /// The messages of the reboots that were asked for.
    pub fn reboots(&self) -> Vec<String> {
        locked(&self.reboots).clone()
    }

    /// Writes to partition table or ESP that were made while shutdown was not held back.
    pub fn unguarded(&self) -> Vec<String> {
        locked(&self.unguarded).clone()
    }

    /// The units that were run, in order; those that are not there too.
    pub fn ran(&self) -> Vec<String> {
        locked(&self.ran).clone()
    }

    /// How many inhibitors the agent holds now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    pub(super) fn saw_write(&self, what: &str) {
        if self.held() == 0 && !self.gone.load(Ordering::SeqCst) {
            locked(&self.unguarded).push(what.to_owned());
        }
    }

    fn reach(&self) -> Result<(), BusError> {
        match self.gone.load(Ordering::SeqCst) {
            true => Err(BusError::Unreachable { service: "logind", source: "the simulated bus is gone".into() }),
            false => Ok(()),
        }
    }

    fn reach_systemd(&self) -> Result<(), String> {
        match self.logind_alone.load(Ordering::SeqCst) {
            true => Err("the policy of the simulated bus denies it".to_owned()),
            false => Ok(()),
        }
    }
}

/// Counts itself while it lives.
#[derive(Debug)]
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SystemBus for SimBus {
    fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError> {
        self.reach()?;
        Ok(locked(&self.others).clone())
    }

    fn inhibit_shutdown(&self, _why: &str) -> Result<Box<dyn Inhibition>, BusError> {
        self.reach()?;
        self.held.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Held(self.held.clone())))
    }

    fn reboot(&self, message: &str) -> Result<(), BusError> {
        self.reach()?;
        locked(&self.reboots).push(message.to_owned());
        Ok(())
    }

    fn unit_states(&self, units: &[String]) -> Result<BTreeMap<String, UnitState>, BusError> {
        self.reach()?;
        self.reach_systemd().map_err(|message| BusError::Refused { service: "systemd", message })?;
        let known = locked(&self.units);
        let unknown = || UnitState { load: "not-found".into(), active: "inactive".into() };
        Ok(units.iter().map(|unit| (unit.clone(), known.get(unit).cloned().unwrap_or_else(unknown))).collect())
    }

    fn run_unit(&self, unit: &str, _limit: std::time::Duration) -> Result<UnitRun, BusError> {
        self.reach()?;
        self.reach_systemd().map_err(|message| BusError::NotAsked { service: "systemd", message })?;
        locked(&self.ran).push(unit.to_owned());
        Ok(locked(&self.runs).get(unit).cloned().unwrap_or(UnitRun::Absent))
    }
}

/// The agent's state folder on the disk's state partition.
#[derive(Debug)]
pub struct SimState {
    disk: Disk,
    locked: Arc<AtomicBool>,
}

/// The state partition's cache: faults of it are the state folder's.
pub const STATE_CACHE: Cache = Cache(STATE);

impl SimState {
    /// On this disk.
    pub fn new(disk: Disk) -> Self {
        Self { disk, locked: Arc::default() }
    }
}

#[derive(Debug)]
struct Lock(Arc<AtomicBool>);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl StateStore for SimState {
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self.disk.file(STATE_CACHE, name)? {
            Some(content) if content.len() as u64 > limit => {
                Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{name} is longer than {limit} bytes")))
            }
            content => Ok(content.map(|content| content.to_vec())),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.disk.set_file(STATE_CACHE, name, Some(content))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.set_file(STATE_CACHE, name, None)
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { free: 64 << 20, total: 64 << 20 })
    }

    fn lock(&self) -> io::Result<Box<dyn Send>> {
        match self.locked.swap(true, Ordering::SeqCst) {
            true => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            false => Ok(Box::new(Lock(self.locked.clone()))),
        }
    }
}
