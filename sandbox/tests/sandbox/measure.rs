//! How long things take here; printed, not judged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_sandbox::Resources;
use serde_json::json;

use crate::tests;
use crate::world::World;

tests!("measure": memory_held, provision_command_destroy);

const ROUNDS: usize = 60;

fn row(name: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "    {name:<28} p50 {:6.2} ms   p95 {:6.2} ms   p99 {:6.2} ms",
        at(50),
        at(95),
        at(99)
    );
}

async fn provision_command_destroy(world: Arc<World>) {
    let mut rows: [Vec<Duration>; 6] = Default::default();
    for _ in 0..ROUNDS {
        let mut mark = Instant::now();
        let mut lap = |row: usize| {
            rows[row].push(mark.elapsed());
            mark = Instant::now();
        };
        let held = world
            .sandbox_of(Resources {
                listeners: true,
                ..Resources::default()
            })
            .await;
        lap(0);
        held.text("true").await;
        lap(1);
        held.text("true").await;
        lap(2);
        held.text("/bin/true").await;
        lap(3);
        held.tool("write", json!({ "file_path": "f", "content": "x" }))
            .await;
        lap(4);
        held.destroy().await;
        lap(5);
    }
    let names = [
        "provision",
        "first command",
        "warm builtin",
        "warm program",
        "write",
        "destroy",
    ];
    let cold = rows[0].iter().zip(&rows[1]).map(|(a, b)| *a + *b).collect();
    row("provision to first command", cold);
    for (name, samples) in names.into_iter().zip(rows) {
        assert_eq!(samples.len(), ROUNDS);
        row(name, samples);
    }
}

/// Proportional memory of a process in KiB, where we may read it.
fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|line| {
        line.strip_prefix("Pss:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    })
}

async fn memory_held(world: Arc<World>) {
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(
            world
                .sandbox_of(Resources {
                    listeners: true,
                    ..Resources::default()
                })
                .await,
        );
    }
    for one in &held {
        one.text("true").await;
    }
    let mut sum = (0, 0);
    for one in &held {
        let pid = one.pid().await;
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        sum.0 += pss_kib(pid).unwrap_or_default();
        sum.1 += children
            .split_whitespace()
            .filter_map(|child| pss_kib(child.parse().ok()?))
            .sum::<u64>();
    }
    let count = u64::try_from(held.len()).expect("a small number");
    println!(
        "    held: pid 1 {} KiB, its shell {} KiB (proportional)",
        sum.0 / count,
        sum.1 / count
    );
    for one in &held {
        one.destroy().await;
    }
    assert!(
        world
            .client
            .list()
            .await
            .expect("a list")
            .iter()
            .all(|row| held.iter().all(|one| one.id != row.sandbox))
    );
}
