//! What is readable is read: by turns, to the end, and not more than that.

use flowgate::datapath::token::Token;
use flowgate_core::{Direction, UpstreamId};
use flowgate_tests::shell_world::Shape;

use super::{calm_world, sent, upstream};

#[test]
fn readiness_that_is_not_so_does_nothing() {
    let mut world = calm_world(1);
    world.request(0, Shape::new(1, 50));
    world.settle();
    let (socket, _) = upstream(&world, 0);
    for token in [
        Token::Listener { shard: 0 },
        Token::Upstream { shard: 0, upstream: UpstreamId::new(0, 0) },
        Token::Upstream { shard: 0, upstream: UpstreamId::new(63, 0) },
        Token::Upstream { shard: 0, upstream: UpstreamId::new(u32::MAX - 1, 7) },
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
