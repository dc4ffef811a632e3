//! Clients' own sockets: what waits at the listener, and what is left at the end.

use std::time::Duration;

use flowgate_core::Direction;
use flowgate_core::config::Accept;
use flowgate_tests::fake_kernel::{Faults, Incoming, SocketId};
use flowgate_tests::shell_world::{Shape, ShellWorld};
use nix::errno::Errno;

use crate::{config, sent};

const ONE: Shape = Shape::new(1, 32);

fn world(clients: u32) -> ShellWorld {
    let mut config = config();
    config.accept = Accept::Connected;
    ShellWorld::new(config, clients, 7, Faults::default())
}

fn own_socket(world: &ShellWorld, client: u32) -> SocketId {
    world.kernel.own_socket_of(world.address_of(client)).expect("a socket of its own")
}

/// A world whose client 0 has a socket of its own, with nothing under way.
fn settled(clients: u32) -> ShellWorld {
    let mut world = world(clients);
    world.request(0, ONE);
    world.settle();
    own_socket(&world, 0);
    world
}

#[test]
fn what_waits_at_the_listener_comes_before_what_arrives_by_the_clients_own_socket() {
    let mut world = world(4);
    for round in 0..100 {
        world.request(0, ONE);
        world.request(round % 4, ONE);
    }
    // The first tick reads a part of that, and client 0 gets its socket.
    world.poll(8, None);
    world.tick();
    let own = own_socket(&world, 0);
    assert!(world.kernel.unread(world.listener) > 100);
    (0..100).for_each(|_| world.request(0, ONE));
    assert!(world.kernel.unread(own) > 0);
    // The world refuses what leaves out of order.
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 300);
}

#[test]
fn a_flood_at_the_listener_holds_up_a_clients_own_socket_no_longer_than_what_was_there_before() {
    let mut world = settled(2);
    let own = own_socket(&world, 0);
    (0..200).for_each(|_| world.kernel.arrive(world.listener, stranger()));
    world.request(0, ONE);
    let ticks = (1..100).find(|_| {
        // More comes all the time than one tick reads.
        (0..40).for_each(|_| world.kernel.arrive(world.listener, stranger()));
        world.poll(8, None);
        world.tick();
        world.kernel.unread(own) == 0
    });
    assert!(world.kernel.unread(world.listener) > 100, "the flood goes on");
    assert!(ticks.is_some_and(|ticks| ticks < 20), "{ticks:?}");
    // From then on nothing older can wait there.
    world.request(0, ONE);
    // A tick is full once the listener has been read.
    for _ in 0..2 {
        world.poll(8, None);
        world.tick();
    }
    assert_eq!(world.kernel.unread(own), 0);
}

fn stranger() -> Incoming {
    // Cut short, so that it makes no flow.
    let whole = Incoming::new("192.0.2.66:6".parse().unwrap(), vec![0; 50], 0);
    Incoming { is_truncated: true, ..whole }
}

#[test]
fn what_waits_at_a_clients_own_socket_when_its_flow_ends_opens_the_next_one() {
    let mut world = settled(1);
    let own = own_socket(&world, 0);
    (0..50).for_each(|_| world.request(0, ONE));
    assert_eq!(world.kernel.unread(own), 50);
    // Nobody polls: a worker reads before it fires timeouts, this one only fires.
    world.pass(Duration::from_secs(86_400));
    assert_eq!(world.shard.manager().flow_count(), 0);
    world.settle();
    (0..50).for_each(|_| world.request(0, ONE));
    world.settle();
    assert_eq!(world.shard.manager().flow_count(), 1);
    assert_eq!(sent(&world, Direction::ToBackend), 101);
}

#[test]
fn flows_of_one_client_share_its_socket_until_the_last_of_them_ends() {
    let mut config = config();
    config.accept = Accept::Connected;
    config.cluster.requests = 1;
    let mut world = ShellWorld::new(config, 1, 7, Faults::default());
    for _ in 0..5 {
        world.request(0, ONE);
        world.settle();
    }
    assert_eq!(world.shard.manager().flow_count(), 5);
    assert_eq!(world.kernel.own_sockets(), [own_socket(&world, 0)]);
    world.pass(Duration::from_secs(86_400));
    world.settle();
    assert_eq!(world.kernel.own_socket_of(world.address_of(0)), None);
    assert!(world.shard.clients().is_empty());
}

#[test]
fn a_client_whose_own_socket_does_not_open_stays_with_the_listener() {
    let mut world = world(2);
    // The first that opens is the upstream socket.
    world.kernel.faults().opens.extend([None, Some(Errno::EMFILE)]);
    (0..3).for_each(|_| world.request(0, ONE));
    world.settle();
    assert_eq!(world.kernel.own_socket_of(world.address_of(0)), None);
    assert_eq!(world.shard.clients().not_opened, 1);
    let (socket, backend) = crate::upstream(&world, 0);
    world.reply(socket, backend, ONE);
    world.settle();
    assert_eq!((sent(&world, Direction::ToBackend), sent(&world, Direction::ToClient)), (3, 1));
}

#[test]
fn what_the_network_says_of_a_client_neither_strands_it_nor_counts_against_its_backend() {
    let mut world = settled(1);
    let own = own_socket(&world, 0);
    world.kernel.report_error(own, Errno::ECONNREFUSED);
    world.request(0, ONE);
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 2);
    assert_eq!(world.shard.manager().counters().upstream_errors, 0);
}

#[test]
fn what_a_clients_own_socket_has_lost_stays_counted_when_it_closes() {
    let mut world = settled(1);
    let own = own_socket(&world, 0);
    world.kernel.lose(own, 7);
    world.end_flows();
    world.settle();
    assert_eq!(world.shard.clients().len(), 0);
    assert_eq!(world.shard.clients().drops, 7);
}

#[test]
fn what_an_upstream_socket_has_lost_stays_counted_when_it_closes() {
    let mut world = settled(2);
    world.request(1, ONE);
    world.settle();
    for (client, lost) in [(0, 3), (1, 4)] {
        let (socket, _) = crate::upstream(&world, client);
        world.kernel.lose(socket, lost);
    }
    world.end_flows();
    world.settle();
    assert_eq!(world.shard.sockets().upstream_drops, 7);
}
