//! Measures the embedded record store: `cargo run --release -p parlance-cluster-records --example throughput [DIR]`.
//!
//! Writes batches of 2,000 changes (1,000 state rows of 300 bytes, 1,000 item rows of 200 bytes) over 100,000 sessions
//! with a checkpoint every 50 batches, then reads, then opens the store again. Prints one line per figure.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use parlance_cluster_protocol::{Offset, Position, SessionKey, ShardId};
use parlance_cluster_records::{Change, ChangeKind, LocalRecords, Order, RecordStore, Row};

#[path = "../../../bin/parlance/src/allocator.rs"]
mod allocator;

const SESSIONS: u64 = 100_000;
const BATCHES: u64 = 1_500;
const SESSIONS_PER_BATCH: u64 = 1_000;
const BATCHES_PER_CHECKPOINT: u64 = 50;
const READS: u64 = 20_000;

fn session(number: u64) -> SessionKey {
    // A stride that is prime to the number of sessions: neighbours in time are no neighbours in key order.
    SessionKey::api("default", format!("conv_{:016x}", number.wrapping_mul(77_777) % SESSIONS))
}

fn batch(number: u64) -> Vec<Change> {
    let sessions = (0..SESSIONS_PER_BATCH).map(|n| number * SESSIONS_PER_BATCH + n);
    sessions
        .flat_map(|turn| {
            let (session, index) = (session(turn), turn / SESSIONS);
            let item = Row::Item { session: session.clone(), index, item: noise(turn, 200).into() };
            let state = Row::Session { session, state: noise(turn + 1, 300).into() };
            [item, state].map(|row| Change { position: Position(turn + 1), kind: ChangeKind::Put(row) })
        })
        .collect()
}

/// Bytes that do not compress, as encrypted text would not.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1 << 63;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args().nth(1).map_or_else(|| temporary.path().to_owned(), Into::into);
    print(format_args!("create           {:>10.1} ms", millis(time(|| LocalRecords::open(&dir))?.0)))?;
    let store = LocalRecords::open(&dir)?;
    write(&store).await?;
    print_memory("writing")?;
    read(&store).await?;
    print_memory("reading")?;
    let killed = tempfile::tempdir()?;
    copy(&dir, killed.path())?;
    let start = Instant::now();
    drop(store);
    print(format_args!("close            {:>10.1} ms", millis(start.elapsed())))?;
    open("open", &dir)?;
    open("open again", &dir)?;
    open("open after kill", killed.path())?;
    print_memory("opening")?;
    print(format_args!("on disk          {:>10.1} MiB", mib(disk_usage(&dir)?)))?;
    Ok(())
}

async fn write(store: &LocalRecords) -> Result<(), Box<dyn std::error::Error>> {
    let (mut written, mut slowest) = (Duration::ZERO, Duration::ZERO);
    let mut checkpoints = Vec::new();
    let cpu = cpu_seconds()?;
    let mut making = Duration::ZERO;
    for number in 0..BATCHES {
        let start = Instant::now();
        let batch = batch(number);
        making += start.elapsed();
        let start = Instant::now();
        store.write(batch).await?;
        written += start.elapsed();
        slowest = slowest.max(start.elapsed());
        if number % BATCHES_PER_CHECKPOINT == 0 {
            let start = Instant::now();
            store.put_checkpoint(ShardId(0), Offset(number), number.to_string().into()).await?;
            checkpoints.push(start.elapsed());
        }
    }
    let changes = (BATCHES * SESSIONS_PER_BATCH * 2) as f64;
    let cpu = cpu_seconds()? - cpu - making.as_secs_f64();
    checkpoints.sort();
    print(format_args!("write            {:>10.0} changes/s", changes / written.as_secs_f64()))?;
    print(format_args!("per CPU second   {:>10.0} changes, flushes and compactions included", changes / cpu))?;
    print(format_args!("slowest batch    {:>10.1} ms", millis(slowest)))?;
    print(format_args!("checkpoint p50   {:>10.1} ms", millis(checkpoints[checkpoints.len() / 2])))?;
    Ok(print(format_args!("checkpoint max   {:>10.1} ms", millis(checkpoints[checkpoints.len() - 1])))?)
}

async fn read(store: &LocalRecords) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    for number in 0..READS {
        let session = session(number * 31);
        if store.session(&session).await?.is_none() {
            return Err(format!("{session} is gone").into());
        }
    }
    print(format_args!("session          {:>10.1} µs", 1e6 * start.elapsed().as_secs_f64() / READS as f64))?;
    let start = Instant::now();
    for number in 0..READS {
        store.items(&session(number * 31), None, Order::Descending, 50).await?;
    }
    print(format_args!("items            {:>10.1} µs", 1e6 * start.elapsed().as_secs_f64() / READS as f64))?;
    Ok(())
}

fn open(what: &str, dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let cpu = cpu_seconds()?;
    let (took, store) = time(|| LocalRecords::open(dir))?;
    let cpu = 1e3 * (cpu_seconds()? - cpu);
    print(format_args!("{what:<16} {:>10.1} ms, {cpu:.0} ms of it computing", millis(took)))?;
    drop(store);
    Ok(())
}

/// A copy of an open store is what a kill would leave.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if from.is_dir() { copy(&from, &to)? } else { fs::copy(&from, &to).map(drop)? }
    }
    Ok(())
}

fn time<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(Duration, T), E> {
    let start = Instant::now();
    let done = work()?;
    Ok((start.elapsed(), done))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn disk_usage(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::read_dir(dir)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let below = if entry.file_type()?.is_dir() { disk_usage(&entry.path())? } else { 0 };
        Ok(sum + below + entry.metadata()?.blocks() * 512)
    })
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

/// The most memory held since the last call, and forgets it.
fn print_memory(what: &str) -> Result<(), Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    fs::write("/proc/self/clear_refs", "5")?;
    Ok(print(format_args!("memory {what:<9} {:>10.1} MiB at most", kib as f64 / 1_024.0))?)
}

fn print(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}
