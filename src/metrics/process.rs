//! Metrics of the process, under the names that Prometheus' own client libraries use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>). They are read from `/proc` on each scrape, and
//! absent on systems without it.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Reads `/proc/self` on each scrape.
#[derive(Debug)]
pub(super) struct Process;

/// What is read from `/proc`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: Option<u64>,
}

/// Units of the kernel's figures.
#[derive(Clone, Copy, Debug)]
struct Units {
    ticks_per_second: u64,
    page_bytes: u64,
    /// When the machine started, in Unix time.
    boot_seconds: u64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(read) = read() else { return Ok(()) };
        let help = "Processor time of the process, in user and system mode.";
        let cpu = ConstCounter::new(read.cpu_seconds);
        let metric =
            encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), cpu.metric_type())?;
        cpu.encode(metric)?;
        let gauges = [
            (
                "process_start_time",
                "Unix time at which the process started.",
                Some(&Unit::Seconds),
                Some(read.start_seconds),
            ),
            (
                "process_resident_memory",
                "Memory of the process that is in RAM.",
                Some(&Unit::Bytes),
                Some(read.resident_bytes as f64),
            ),
            (
                "process_virtual_memory",
                "Address space of the process.",
                Some(&Unit::Bytes),
                Some(read.virtual_bytes as f64),
            ),
            (
                "process_open_fds",
                "Open file descriptors.",
                None,
                Some(read.open_fds as f64),
            ),
            (
                "process_max_fds",
                "Most file descriptors that may be open.",
                None,
                read.max_fds.map(|max| max as f64),
            ),
            (
                "idtoken_tasks",
                "Asynchronous tasks that run or wait.",
                None,
                tasks(),
            ),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// How many tasks the runtime has; none outside of a runtime.
fn tasks() -> Option<f64> {
    let runtime = tokio::runtime::Handle::try_current().ok()?;
    Some(runtime.metrics().num_alive_tasks() as f64)
}

fn read() -> Option<Reading> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    let units = Units {
        ticks_per_second: clock_ticks_per_second(),
        page_bytes: u64::try_from(page_size()).ok()?,
        boot_seconds: boot_time(&machine)?,
    };
    let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count();
    Some(Reading {
        // Without the descriptor of the folder itself.
        open_fds: u64::try_from(open_fds).ok()?.saturating_sub(1),
        max_fds: getrlimit(Resource::Nofile).current,
        ..parse(&stat, units)?
    })
}

fn boot_time(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

/// Parses `/proc/PID/stat` (proc_pid_stat(5)), which does not hold the number of open files.
fn parse(stat: &str, units: Units) -> Option<Reading> {
    // The second field is the program's name, which may hold anything, closing parentheses too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // The manual numbers fields from 1; the first one here is its third.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second as f64;
    Some(Reading {
        cpu_seconds: seconds(field(14)? + field(15)?),
        start_seconds: units.boot_seconds as f64 + seconds(field(22)?),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)?.saturating_mul(units.page_bytes),
        open_fds: 0,
        max_fds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_whatever_the_program_is_called() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 900 0 7 0 250 150 0 0 20 0 9 0 6000 1073741824 2560 \
                    18446744073709551615 1 1 0 0 0 0 0 4096 1088 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let units = Units {
            ticks_per_second: 100,
            page_bytes: 4096,
            boot_seconds: 1_000_000,
        };
        let read = parse(stat, units).unwrap();
        assert_eq!((read.cpu_seconds, read.start_seconds), (4.0, 1_000_060.0));
        assert_eq!(
            (read.resident_bytes, read.virtual_bytes),
            (10 * 1024 * 1024, 1 << 30)
        );
        assert_eq!(parse("42 (x) S 1", units), None);
        assert_eq!(
            boot_time("cpu 1 2\nbtime 1700000000\nprocesses 3\n"),
            Some(1_700_000_000)
        );
    }

    #[test]
    fn this_process_is_seen() {
        let read = read().unwrap();
        assert!(
            read.resident_bytes > 1024 * 1024 && read.open_fds >= 3,
            "{read:?}"
        );
        let age = jiff::Timestamp::now().as_second() as f64 - read.start_seconds;
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
    }
}
