//! What a process asks of Windows.

use std::fs::File;
use std::io;
use std::mem;
use std::os::windows::io::IntoRawHandle;

use windows_sys::Win32::Foundation::{CloseHandle, FILETIME, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Console::{STD_ERROR_HANDLE, SetStdHandle};
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessHandleCount, GetProcessTimes, OpenProcess, PROCESS_SYNCHRONIZE,
    WaitForSingleObject,
};

use super::ProcessUsage;
use crate::sys::fd::BorrowedFd;

/// How many sockets a process is taken to be able to open: Windows has no limit but memory.
const SOCKETS: u64 = 1 << 20;

/// How many sockets the process may open.
///
/// # Errors
///
/// None.
pub const fn raise_descriptor_limit() -> io::Result<u64> {
    Ok(SOCKETS)
}

/// What is left to others than flows: nothing need be.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorLimit(());

impl DescriptorLimit {
    /// None.
    pub const fn of_this_process() -> Self {
        Self(())
    }

    /// Whether a socket leaves enough to others.
    ///
    /// # Errors
    ///
    /// None.
    pub const fn check(self, _socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// Tables of handles grow as they must.
///
/// # Errors
///
/// None.
pub const fn reserve_descriptors(_count: u64) -> io::Result<()> {
    Ok(())
}

/// Whether a process has ended, or there is none that may be asked.
pub fn has_ended(process: u32) -> bool {
    // SAFETY: no memory is passed.
    let handle = unsafe { OpenProcess(PROCESS_SYNCHRONIZE, 0, process) };
    if handle.is_null() {
        return true;
    }
    // SAFETY: the handle has just been opened, and nobody else has it.
    let (state, _) = unsafe { (WaitForSingleObject(handle, 0), CloseHandle(handle)) };
    state == WAIT_OBJECT_0
}

/// The name of this machine.
pub fn host_name() -> Option<String> {
    std::env::var("COMPUTERNAME").ok().filter(|name| !name.is_empty())
}

/// Has whatever is written to standard error from now on written to a file.
///
/// # Errors
///
/// Those of `SetStdHandle`.
pub fn log_to(file: File) -> io::Result<()> {
    // It is open until the process ends.
    let file = file.into_raw_handle();
    // SAFETY: the handle is open, and nobody closes it.
    match unsafe { SetStdHandle(STD_ERROR_HANDLE, file) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What the process uses. What cannot be found out is 0.
pub fn usage() -> ProcessUsage {
    let memory = memory(this());
    ProcessUsage {
        cpu_seconds: cpu_seconds(this()),
        resident_bytes: memory.WorkingSetSize as u64,
        virtual_bytes: memory.PagefileUsage as u64,
        threads: 0,
    }
}

/// How many handles are open.
pub fn open_files() -> u64 {
    let mut count = 0;
    // SAFETY: the number is writable.
    let found = unsafe { GetProcessHandleCount(this(), &raw mut count) };
    if found != 0 { count.into() } else { 0 }
}

/// How many handles may be open.
pub const fn open_files_max() -> u64 {
    SOCKETS
}

fn this() -> HANDLE {
    // SAFETY: it always succeeds, and its handle need not be closed.
    unsafe { GetCurrentProcess() }
}

fn cpu_seconds(process: HANDLE) -> f64 {
    let mut times = [FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 }; 4];
    let [created, ended, kernel, user] = &mut times;
    // SAFETY: all four are writable.
    let found = unsafe { GetProcessTimes(process, created, ended, kernel, user) };
    // In tenths of a microsecond.
    let ticks =
        |time: &FILETIME| (u64::from(time.dwHighDateTime) << 32) | u64::from(time.dwLowDateTime);
    if found == 0 { 0.0 } else { (ticks(&times[2]) + ticks(&times[3])) as f64 / 1e7 }
}

fn memory(process: HANDLE) -> PROCESS_MEMORY_COUNTERS {
    let size = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    // SAFETY: all zeroes are such figures.
    let mut memory: PROCESS_MEMORY_COUNTERS = unsafe { mem::zeroed() };
    memory.cb = size;
    // SAFETY: the figures are writable for the size that is given.
    let found = unsafe { K32GetProcessMemoryInfo(process, &raw mut memory, size) };
    if found == 0 {
        // SAFETY: as above.
        memory = unsafe { mem::zeroed() };
    }
    memory
}

/// Ends the process at once, whatever its other threads do.
pub fn exit_now(code: i32) -> ! {
    std::process::exit(code)
}
