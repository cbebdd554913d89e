//! What wiping promises, judged by the scan of live memory.

#[path = "support/child.rs"]
mod child;

use std::alloc::{Layout, System};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::Instant;

use claviger_vault_memory::scan::{Fingerprints, scan_bytes, scan_process, scan_self};
use claviger_vault_memory::{Arena, Protection, SecretBytes, ZeroOnFree, harden, wipe_stack};

#[global_allocator]
static ALLOCATOR: ZeroOnFree<System> = ZeroOnFree(System);

/// A random secret that exists in the arena only, and what to look for.
fn secret_and_fingerprints() -> (SecretBytes, Fingerprints) {
    let secret = SecretBytes::random(48).expect("48 bytes of the arena");
    let fingerprints =
        Fingerprints::new([7; 32], [("canary", secret.expose())]).expect("48 bytes are enough");
    (secret, fingerprints)
}

#[test]
fn a_copy_on_the_heap_is_found_until_it_is_freed() {
    let (secret, fingerprints) = secret_and_fingerprints();
    let report = scan_self(&fingerprints).unwrap();
    assert_eq!(report.total_hits(), 0, "{:?}", report.places);
    assert_eq!(report.arena_hits["canary"], 1);
    assert!(report.bytes > 1_000_000 && report.arena_bytes > 0 && report.regions > 10);

    let leaked = secret.expose().to_vec();
    let report = scan_self(&fingerprints).unwrap();
    assert_eq!(report.hits["canary"], 1, "{:?}", report.places);

    drop(leaked);
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 0);
    drop(secret);
    assert!(scan_self(&fingerprints).unwrap().arena_hits.is_empty());
}

#[test]
fn growing_and_shrinking_a_buffer_leaves_no_copy() {
    let (secret, fingerprints) = secret_and_fingerprints();
    let mut buffer = Vec::with_capacity(48);
    buffer.extend_from_slice(secret.expose());
    for size in [1000, 5000, 200_000] {
        buffer.resize(size, 0);
        buffer.shrink_to_fit();
    }
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 1);
    buffer.truncate(20);
    buffer.shrink_to_fit();
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 0);
}

#[test]
fn an_allocator_that_does_not_wipe_leaves_the_secret_behind() {
    let (secret, fingerprints) = secret_and_fingerprints();
    let layout = Layout::from_size_align(40_000, 8).unwrap();
    let use_and_free = |allocator: &dyn std::alloc::GlobalAlloc| {
        #[expect(unsafe_code, reason = "allocators are called by hand")]
        // SAFETY: the layout is not empty.
        let block = unsafe { allocator.alloc(layout) };
        #[expect(unsafe_code, reason = "allocators are called by hand")]
        // SAFETY: 48 bytes at offset 35,000 lie inside the 40,000 of the block.
        unsafe {
            std::slice::from_raw_parts_mut(block.wrapping_add(35_000), 48)
                .copy_from_slice(secret.expose());
        }
        // Without this the optimiser leaves out a copy into a block that is freed next.
        std::hint::black_box(block);
        #[expect(unsafe_code, reason = "allocators are called by hand")]
        // SAFETY: the block came from this allocator with this layout.
        unsafe {
            allocator.dealloc(block, layout);
        }
    };
    use_and_free(&ALLOCATOR);
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 0);
    // Another thread of this test may take the freed block at once, so the control has some tries.
    let found = (0..50).any(|_| {
        use_and_free(&System);
        scan_self(&fingerprints).unwrap().total_hits() > 0
    });
    assert!(found, "control: free alone wipes nothing");
}

#[test]
fn a_copy_left_on_the_stack_is_found_until_the_stack_is_wiped() {
    #[inline(never)]
    fn leave(secret: &SecretBytes) {
        let mut frame = [0u8; 8192];
        frame[4000..4048].copy_from_slice(secret.expose());
        std::hint::black_box(&frame);
    }
    #[inline(never)]
    fn leave_deep(secret: &SecretBytes) {
        let far = std::hint::black_box([0u8; 12 * 1024]);
        leave(secret);
        std::hint::black_box(&far);
    }
    let (secret, fingerprints) = secret_and_fingerprints();
    leave_deep(&secret);
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 1, "control");
    leave_deep(&secret);
    wipe_stack();
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 0);
}

#[test]
fn a_hardened_process_of_an_ordinary_user_can_scan_itself() {
    const NAME: &str = "a_hardened_process_of_an_ordinary_user_can_scan_itself";
    if child::role().is_none() {
        return child::assert_success(&mut child::command_unprivileged(NAME, "child"));
    }
    harden::process().unwrap();
    harden::forbid_new_processes().unwrap();
    harden::forbid_network().unwrap();
    let (secret, fingerprints) = secret_and_fingerprints();
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 0);
    let leaked = secret.expose().to_vec();
    assert_eq!(scan_self(&fingerprints).unwrap().total_hits(), 1);
    drop(leaked);
}

#[test]
fn another_process_shows_its_heap_but_not_its_arena() {
    const NAME: &str = "another_process_shows_its_heap_but_not_its_arena";
    const HEAP: &[u8] = b"0123456789 lies on the heap of the target";
    const ARENA: [u8; 41] = *b"9876543210 lies in the arena of the targe";
    if child::role().is_some() {
        let heap = std::hint::black_box(HEAP).to_vec();
        // Turned around on its way in, so that the text of the program does not hold it.
        let mut turned = SecretBytes::new_zeroed(41).unwrap();
        for (to, from) in turned.expose_mut().iter_mut().zip(ARENA.iter().rev()) {
            *to = *from;
        }
        println!("READY");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        assert_eq!(heap.len(), turned.len());
        return;
    }
    let mut target = child::command(NAME, "child")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(target.stdout.take().unwrap());
    assert!(
        output
            .by_ref()
            .lines()
            .any(|line| line.unwrap().contains("READY"))
    );
    let turned: Vec<u8> = ARENA.iter().rev().copied().collect();
    let report = scan_process(target.id(), &[("heap", HEAP), ("arena", &turned)]).unwrap();
    target.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(target.wait().unwrap().success());
    assert!(
        report
            .places
            .iter()
            .any(|place| place.pattern == "heap" && place.mapping == "[heap]")
            || report.hits["heap"] > 1
    );
    assert_eq!(report.arena_bytes, 0);
    if Arena::global().start().unwrap() == Protection::MemfdSecret {
        assert!(!report.hits.contains_key("arena"), "{:?}", report.places);
        assert!(report.unreadable_bytes >= 1024 * 1024);
    } else {
        assert!(
            report.hits.contains_key("arena"),
            "locked memory is readable for root"
        );
    }
}

#[test]
fn fingerprints_travel_as_json_without_the_pattern() {
    let pattern = b"sk-live-0123456789abcdef0123456789";
    let fingerprints = Fingerprints::new(
        [9; 32],
        [("key", pattern.as_slice()), ("other", &pattern[4..])],
    )
    .unwrap();
    let json = serde_json::to_string(&fingerprints).unwrap();
    assert!(!json.contains("sk-live") && !json.contains("0123456789abcdef0123"));
    assert!(!json.contains(&hex::encode(pattern)));
    let back: Fingerprints = serde_json::from_str(&json).unwrap();
    assert_eq!(back.names().collect::<Vec<_>>(), ["key", "other"]);
    let hits = scan_bytes(
        b"x sk-live-0123456789abcdef0123456789 y ive-0123456789abcdef0123456789",
        &back,
    );
    assert_eq!((hits["key"], hits["other"]), (1, 2));
}

#[test]
fn fingerprints_that_break_the_rules_are_refused() {
    assert!(Fingerprints::new([0; 32], [("short", b"elevenbytes")]).is_err());
    assert!(Fingerprints::new([0; 32], [("long", vec![1; 64 * 1024 + 1])]).is_err());
    let good =
        serde_json::to_string(&Fingerprints::new([0; 32], [("x", [5; 20])]).unwrap()).unwrap();
    for (from, to) in [
        ("\"window\":16", "\"window\":0"),
        ("\"window\":16", "\"window\":17"),
        ("\"length\":20", "\"length\":15"),
        ("\"length\":20", "\"length\":18446744073709551615"),
        ("\"key\":\"00", "\"key\":\""),
        ("\"key\"", "\"extra\":1,\"key\""),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        assert!(serde_json::from_str::<Fingerprints>(&bad).is_err(), "{to}");
    }
}

#[test]
fn throughput_is_enough_for_a_live_process() {
    let (_secret, fingerprints) = secret_and_fingerprints();
    let bytes: Vec<u8> = (0..16 * 1024 * 1024u32)
        .map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let start = Instant::now();
    assert!(scan_bytes(&bytes, &fingerprints).is_empty());
    let rate = bytes.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("scan: {rate:.0} MB/s");
    let least = if cfg!(debug_assertions) { 1.0 } else { 200.0 };
    assert!(rate >= least, "{rate:.0} MB/s");
}
