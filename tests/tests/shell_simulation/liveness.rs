//! What is readable is read: by turns, to the end, and not more than that.

use std::time::Duration;

use flowgate::datapath::token::Token;
use flowgate_core::{Direction, DropReason};
use flowgate_tests::fake_kernel::Faults;
use flowgate_tests::shell_world::{Shape, ShellWorld};

use super::{calm_world, config, only_dropped, sent, upstream};

#[test]
fn readiness_that_is_not_so_does_nothing() {
    let mut world = calm_world(1);
    world.request(0, Shape::new(1, 50));
    world.settle();
    let (socket, _) = upstream(&world, 0);
    for token in [
        Token::Listener { shard: 0 },
        Token::Upstream { shard: 0, flow: 0 },
        Token::Upstream { shard: 0, flow: 63 },
        Token::Upstream { shard: 0, flow: u32::MAX - 1 },
        Token::Wake,
    ] {
        world.poll(8, Some(token));
        world.settle();
    }
    world.kernel.wake(socket);
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 1);
    assert!(!world.shard.has_work());
}

#[test]
fn a_listener_with_more_waiting_than_a_turn_takes_is_read_to_the_end() {
    let mut world = calm_world(4);
    for round in 0..500 {
        world.request(round % 4, Shape::new(1, 50 + round as usize));
    }
    world.settle();
    assert_eq!(world.kernel.unread(world.listener), 0);
    assert_eq!(sent(&world, Direction::ToBackend), 500);
}

#[test]
fn exactly_as_many_as_a_receive_takes_leave_nothing_behind() {
    for bursts in [15, 16, 17, 31, 32, 33, 64] {
        let mut world = calm_world(1);
        world.request(0, Shape::new(1, 50));
        world.settle();
        let (socket, backend) = upstream(&world, 0);
        for _ in 0..bursts {
            world.reply(socket, backend, Shape::new(2, 50));
        }
        world.settle();
        assert_eq!(sent(&world, Direction::ToClient), 2 * bursts);
        world.reply(socket, backend, Shape::new(1, 50));
        world.settle();
        assert_eq!(sent(&world, Direction::ToClient), 2 * bursts + 1, "its next edge is told");
    }
}

#[test]
fn a_flow_in_full_spate_does_not_keep_the_others_waiting() {
    let mut world = calm_world(2);
    world.request(0, Shape::new(1, 50));
    world.request(1, Shape::new(1, 50));
    world.settle();
    let ((busy, busy_backend), (quiet, backend)) = (upstream(&world, 0), upstream(&world, 1));
    for _ in 0..10_000 {
        world.reply(busy, busy_backend, Shape::new(1, 500));
    }
    world.poll(8, None);
    world.reply(quiet, backend, Shape::new(1, 50));
    world.request(1, Shape::new(1, 50));
    for _ in 0..2 {
        world.poll(8, None);
        world.tick();
    }
    assert!(world.kernel.unread(busy) > 9_000);
    assert_eq!(world.kernel.unread(quiet), 0);
    assert_eq!(world.kernel.unread(world.listener), 0);
}

#[test]
fn a_late_answer_to_a_former_client_never_reaches_the_next_one_on_its_socket() {
    let mut config = config();
    config.cluster.upstream_reuse = Some(Duration::from_secs(5));
    config.cluster.responses = 1;
    config.cluster.backends.truncate(1);
    let mut world = ShellWorld::new(config, 2, 7, Faults::default());
    world.request(0, Shape::new(1, 50));
    world.settle();
    let (socket, backend) = upstream(&world, 0);
    // The answer that ends the flow, and one that is read while the socket rests.
    for _ in 0..2 {
        world.reply(socket, backend, Shape::new(1, 60));
        world.settle();
        world.pass(Duration::from_secs(6));
    }
    // One that comes while the next client's question waits to be read.
    world.request(1, Shape::new(1, 50));
    world.reply(socket, backend, Shape::new(1, 60));
    world.settle();
    assert_eq!(upstream(&world, 1).0, socket, "the second client has the first one's socket");
    world.reply(socket, backend, Shape::new(1, 60));
    world.settle();
    assert_eq!(sent(&world, Direction::ToClient), 2);
    assert_eq!(only_dropped(&world, Direction::ToClient, DropReason::UnknownFlow), 2);
}
