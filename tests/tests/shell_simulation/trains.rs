//! Trains: what goes together, and what happens when the kernel will not cut one apart.

use flowgate_core::Direction;
use flowgate_tests::fake_kernel::{SocketId, Usage};
use flowgate_tests::shell_world::{Shape, ShellWorld};
use nix::errno::Errno;

use super::{calm_world, sent, upstream};

/// How `socket` is used when `act` and all that follows from it happen.
fn usage_of(world: &mut ShellWorld, socket: SocketId, act: impl FnOnce(&mut ShellWorld)) -> Usage {
    let before = world.kernel.usage(socket);
    act(world);
    world.settle();
    let after = world.kernel.usage(socket);
    Usage {
        calls: after.calls - before.calls,
        messages: after.messages - before.messages,
        trains: after.trains - before.trains,
    }
}

/// A world in which clients 0 and 1 have a flow each.
fn world_of_two() -> ShellWorld {
    let mut world = calm_world(2);
    world.request(0, Shape::new(1, 50));
    world.request(1, Shape::new(1, 50));
    world.settle();
    world
}

#[test]
fn neighbouring_datagrams_of_one_flow_leave_as_one_train() {
    let mut world = world_of_two();
    let (socket, _) = upstream(&world, 0);
    let usage = usage_of(&mut world, socket, |world| {
        for client in [0, 1, 0, 1, 0] {
            world.request(client, Shape::new(4, 100));
        }
        world.request(0, Shape::new(1, 99));
    });
    assert_eq!(usage, Usage { calls: 1, messages: 1, trains: 1 });
    assert_eq!(sent(&world, Direction::ToBackend), 2 + 21);
}

#[test]
fn datagrams_of_different_length_or_tos_leave_in_different_messages() {
    let mut world = world_of_two();
    let (socket, _) = upstream(&world, 0);
    let usage = usage_of(&mut world, socket, |world| {
        world.request(0, Shape::new(2, 100));
        world.request(0, Shape::new(2, 101));
        world.request(0, Shape { tos: 1, ..Shape::new(2, 101) });
        world.request(0, Shape { short_by: 9, tos: 1, ..Shape::new(2, 101) });
        world.request(0, Shape { tos: 1, ..Shape::new(1, 101) });
    });
    assert_eq!(usage, Usage { calls: 1, messages: 4, trains: 3 });
}

#[test]
fn no_train_is_longer_than_the_kernel_takes() {
    let mut world = world_of_two();
    let (socket, _) = upstream(&world, 0);
    for bursts in [
        &[(64, 50)][..],
        &[(65, 50)],
        &[(128, 50)],
        &[(40, 50), (40, 50)],
        &[(30, 1_200), (30, 1_200)],
    ] {
        let usage = usage_of(&mut world, socket, |world| {
            for &(datagrams, len) in bursts {
                world.request(0, Shape::new(datagrams, len));
            }
        });
        assert_eq!(usage.calls, 1, "{bursts:?} were refused at first");
    }
    assert_eq!(sent(&world, Direction::ToBackend), 2 + 64 + 65 + 128 + 80 + 60);
}

#[test]
fn a_train_refused_for_good_goes_singly_and_so_does_all_that_its_flow_sends_that_way() {
    let mut world = world_of_two();
    let ((first, backend), (second, _)) = (upstream(&world, 0), upstream(&world, 1));
    world.kernel.refuse_gso(first, backend, Some(Errno::EIO));
    let train = |client| move |world: &mut ShellWorld| world.request(client, Shape::new(8, 100));

    let refused = usage_of(&mut world, first, train(0));
    assert_eq!(refused, Usage { calls: 2, messages: 8, trains: 0 });
    let remembered = usage_of(&mut world, first, train(0));
    assert_eq!(remembered, Usage { calls: 1, messages: 8, trains: 0 });
    let other_flow = usage_of(&mut world, second, train(1));
    assert_eq!(other_flow, Usage { calls: 1, messages: 1, trains: 1 });
}

#[test]
fn a_client_whose_route_takes_no_trains_gets_single_datagrams_and_the_others_get_trains() {
    let mut world = world_of_two();
    let (listener, to) = (world.listener, world.address_of(0));
    world.kernel.refuse_gso(listener, to, Some(Errno::EIO));
    let reply = |client| {
        move |world: &mut ShellWorld| {
            let (socket, backend) = upstream(world, client);
            world.reply(socket, backend, Shape::new(8, 100));
        }
    };
    assert_eq!(usage_of(&mut world, listener, reply(0)).trains, 0);
    let remembered = usage_of(&mut world, listener, reply(0));
    assert_eq!(remembered, Usage { calls: 1, messages: 8, trains: 0 });
    let other_client = usage_of(&mut world, listener, reply(1));
    assert_eq!(other_client, Usage { calls: 1, messages: 1, trains: 1 });
}

#[test]
fn a_train_too_long_for_the_path_goes_singly_and_the_next_one_is_tried_as_a_train() {
    for errno in [Errno::EINVAL, Errno::EMSGSIZE] {
        let mut world = world_of_two();
        let (socket, backend) = upstream(&world, 0);
        world.kernel.refuse_gso(socket, backend, Some(errno));
        let train = |world: &mut ShellWorld| world.request(0, Shape::new(8, 100));
        let refused = usage_of(&mut world, socket, train);
        assert_eq!(refused, Usage { calls: 2, messages: 8, trains: 0 }, "{errno}");
        world.kernel.refuse_gso(socket, backend, None);
        let tried_again = usage_of(&mut world, socket, train);
        assert_eq!(tried_again, Usage { calls: 1, messages: 1, trains: 1 }, "{errno}");
    }
}

#[test]
fn a_hop_limit_that_alternates_costs_no_call_of_its_own_and_one_that_stays_becomes_the_sockets() {
    let mut world = calm_world(1);
    world.request(0, Shape::new(1, 50));
    world.settle();
    let (socket, _) = upstream(&world, 0);
    let before = world.kernel.usage(socket);
    for number in 0..640 {
        world.request(0, Shape { tos: number as u8 % 2, ..Shape::new(1, 50) });
    }
    world.settle();
    let alternating = world.kernel.usage(socket);
    assert_eq!(world.kernel.ttl_changes(socket), 0);
    assert_eq!(alternating.messages - before.messages, 640);
    let calls = alternating.calls - before.calls;
    assert!(calls <= 640 / 16, "{calls} calls");
    for _ in 0..100 {
        world.request(0, Shape { tos: 3, ..Shape::new(1, 50) });
    }
    world.settle();
    assert_eq!(world.kernel.ttl_changes(socket), 1);
}
