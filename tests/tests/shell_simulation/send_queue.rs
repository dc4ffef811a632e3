//! Full send buffers: what waits, for how long, and who does not.

use std::time::Duration;

use flowgate_core::{Direction, DropReason, Instant, ManagerInput, PreparedConfig};
use flowgate_tests::fake_kernel::{SendFault, SocketId};
use flowgate_tests::shell_world::{Shape, ShellWorld};
use nix::errno::Errno;

use super::{calm_world, config, only_dropped, sent, upstream};
use flowgate::datapath::send::queue::MAX_DATAGRAMS;

/// A world in which clients 0 and 1 have a flow each, and the first one's backend does not read.
fn world_with_a_full_socket() -> (ShellWorld, SocketId) {
    let mut world = calm_world(2);
    world.request(0, Shape::new(1, 50));
    world.request(1, Shape::new(1, 50));
    world.settle();
    let (full, _) = upstream(&world, 0);
    world.kernel.set_room(full, 0);
    (world, full)
}

#[test]
fn a_backend_that_does_not_read_holds_up_no_other_flow() {
    let (mut world, _) = world_with_a_full_socket();
    for _ in 0..100 {
        world.request(0, Shape::new(20, 500));
        world.request(1, Shape::new(20, 500));
        world.settle();
    }
    assert_eq!(sent(&world, Direction::ToBackend), 2 + 2_000);
    assert_eq!(world.shard.queued(Direction::ToBackend), MAX_DATAGRAMS);
    let lost = only_dropped(&world, Direction::ToBackend, DropReason::QueueFull);
    assert_eq!(lost, 2_000 - MAX_DATAGRAMS as u64);
}

#[test]
fn a_datagram_counts_as_forwarded_when_the_kernel_has_taken_it_and_is_queued_until_then() {
    let (mut world, full) = world_with_a_full_socket();
    let books = |world: &ShellWorld| {
        let ledger = super::ledger(world, Direction::ToBackend);
        let sums = [ledger.received, ledger.forwarded, ledger.queued, ledger.dropped_total()];
        sums.map(|sum| sum.datagrams)
    };
    world.request(0, Shape::new(30, 100));
    world.settle();
    assert_eq!(books(&world), [32, 2, 30, 0]);
    world.kernel.set_room(full, 10);
    world.settle();
    assert_eq!(books(&world), [32, 12, 20, 0]);
    // The kernel refuses one of those that wait.
    world.kernel.faults().sends.push_back(Some(SendFault::Error(Errno::EPERM)));
    world.kernel.set_room(full, 4);
    world.settle();
    assert_eq!(books(&world)[1], 16);
    world.kernel.set_room(full, usize::MAX);
    world.settle();
    let [received, forwarded, queued, dropped] = books(&world);
    assert_eq!((received, forwarded + dropped, queued), (32, 32, 0));
    let (to, _) = world.shard.manager().backends().iter().fold((0, 0), |sum, (_, backend)| {
        (sum.0 + backend.to.datagrams, sum.1 + backend.dropped.datagrams)
    });
    assert_eq!(to, forwarded, "what each backend got adds up to it");
}

#[test]
fn a_client_that_cannot_be_sent_to_does_not_hold_up_requests() {
    let (mut world, _) = world_with_a_full_socket();
    world.kernel.set_room(world.listener, 0);
    let (socket, backend) = upstream(&world, 1);
    for _ in 0..10 {
        world.reply(socket, backend, Shape::new(5, 100));
        world.request(1, Shape::new(5, 100));
        world.settle();
    }
    assert_eq!(sent(&world, Direction::ToBackend), 2 + 50);
    assert_eq!(world.shard.queued(Direction::ToClient), 50);
    world.kernel.set_room(world.listener, usize::MAX);
    world.settle();
    assert_eq!(sent(&world, Direction::ToClient), 50);
}

#[test]
fn what_waits_goes_out_as_room_comes_and_before_what_comes_later() {
    let (mut world, full) = world_with_a_full_socket();
    world.request(0, Shape::new(30, 100));
    world.settle();
    assert_eq!(world.shard.queued(Direction::ToBackend), 30);
    assert!(world.kernel.is_watched(full));
    for _ in 0..4 {
        world.kernel.set_room(full, 7);
        world.request(0, Shape::new(1, 100));
        world.settle();
    }
    assert_eq!(world.shard.queued(Direction::ToBackend), 30 + 4 - 28);
    world.kernel.set_room(full, usize::MAX);
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 2 + 34);
    assert!(!world.kernel.is_watched(full), "nothing waits, so there is nothing to be told");
}

#[test]
fn a_socket_that_cannot_be_watched_is_tried_again_with_its_next_datagram() {
    let (mut world, full) = world_with_a_full_socket();
    world.kernel.faults().watches.push_back(Some(Errno::ENOMEM));
    world.request(0, Shape::new(3, 100));
    world.settle();
    world.kernel.set_room(full, usize::MAX);
    world.request(0, Shape::new(1, 100));
    world.settle();
    assert_eq!(world.shard.queued(Direction::ToBackend), 0);
    assert_eq!(sent(&world, Direction::ToBackend), 2 + 4);
}

#[test]
fn a_flow_that_ends_gives_up_what_waits_and_counts_it() {
    let (mut world, _) = world_with_a_full_socket();
    world.request(0, Shape::new(10, 100));
    world.settle();
    world.pass(config().cluster.idle_timeout + Duration::from_secs(5));
    assert_eq!(only_dropped(&world, Direction::ToBackend, DropReason::Closed), 10);
    assert_eq!(world.shard.queued(Direction::ToBackend), 0);
}

#[test]
fn a_batch_of_which_the_kernel_takes_a_part_goes_on_where_that_stopped() {
    let mut world = calm_world(1);
    for part in [1, 3, 2, 1] {
        world.kernel.faults().sends.push_back(Some(SendFault::Part(part)));
    }
    for len in [100, 101, 102, 103, 104, 105, 106, 107, 108, 109] {
        world.request(0, Shape::new(1, len));
    }
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 10);
}

#[test]
fn what_waits_for_a_backend_that_is_removed_is_given_up_and_counted() {
    let (mut world, full) = world_with_a_full_socket();
    world.request(0, Shape::new(30, 100));
    world.settle();
    let (_, backend) = upstream(&world, 0);
    let mut config = config();
    let removed = config.cluster.backends.iter_mut().find(|other| other.address == backend);
    removed.expect("it is configured").removed = true;
    let configured = PreparedConfig::new(config);
    let (mut kernel, now) = (world.kernel.clone(), Instant::from_millis(1));
    world.shard.handle(ManagerInput::Configured(&configured), &mut kernel, now);
    assert_eq!(world.shard.queued(Direction::ToBackend), 0);
    assert_eq!(only_dropped(&world, Direction::ToBackend, DropReason::Closed), 30);
    // Also when there is room again nothing goes there.
    world.kernel.take_sent(full);
    world.kernel.set_room(full, usize::MAX);
    world.poll(8, None);
    world.tick();
    assert!(world.kernel.take_sent(full).is_empty());
}
