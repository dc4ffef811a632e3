//! Errors of the kernel, one at a time: what is lost, what is not, and under which name.

use flowgate_core::{CloseReason, Direction, DropReason};
use flowgate_tests::fake_kernel::{Incoming, SendFault};
use flowgate_tests::shell_world::{Shape, ShellWorld};
use nix::errno::Errno;

use super::{calm_world, ledger, only_dropped, sent, upstream};

/// What ICMP makes of a connected socket's next call.
const ICMP: [Errno; 9] = [
    Errno::ECONNREFUSED,
    Errno::EHOSTUNREACH,
    Errno::ENETUNREACH,
    Errno::EHOSTDOWN,
    Errno::ENONET,
    Errno::ENOPROTOOPT,
    Errno::EPROTO,
    Errno::EMSGSIZE,
    Errno::EACCES,
];

fn world_with_a_flow() -> ShellWorld {
    let mut world = calm_world(1);
    world.request(0, Shape::new(1, 50));
    world.settle();
    world
}

#[test]
fn an_error_of_an_earlier_datagram_never_loses_the_one_that_meets_it() {
    for errno in ICMP {
        for datagrams in [1, 5] {
            let mut world = world_with_a_flow();
            world.kernel.faults().sends.push_back(Some(SendFault::Error(errno)));
            world.request(0, Shape::new(datagrams, 100));
            world.settle();
            assert_eq!(sent(&world, Direction::ToBackend), 1 + datagrams as u64, "{errno}");
        }
    }
}

#[test]
fn an_error_met_by_a_receive_strands_nothing_behind_it() {
    for errno in ICMP {
        let mut world = world_with_a_flow();
        let (socket, backend) = upstream(&world, 0);
        world.kernel.report_error(socket, errno);
        for _ in 0..40 {
            world.reply(socket, backend, Shape::new(2, 100));
        }
        world.settle();
        assert_eq!(sent(&world, Direction::ToClient), 80, "{errno}");
        assert_eq!(world.shard.manager().flow_count(), 1, "{errno} ended the flow");
    }
}

#[test]
fn an_error_of_receiving_that_lasts_ends_each_turn_and_what_works_again_is_served() {
    for errno in [Errno::EPERM, Errno::ENOSYS, Errno::EBADF, Errno::EINTR, Errno::EHOSTUNREACH] {
        let mut world = world_with_a_flow();
        let (socket, backend) = upstream(&world, 0);
        // An error may be about more than what it began with, which nobody else gets then.
        world.request(0, Shape::new(1, 50));
        world.settle();
        world.kernel.faults().receives = Some(errno);
        world.request(0, Shape::new(1, 50));
        world.reply(socket, backend, Shape::new(1, 50));
        world.poll(8, None);
        world.tick();
        assert!(!world.shard.has_work(), "{errno}: it would be read for ever");
        world.kernel.faults().receives = None;
        world.request(0, Shape::new(1, 50));
        world.reply(socket, backend, Shape::new(1, 50));
        world.settle();
        assert_eq!(sent(&world, Direction::ToBackend), 2 + 2, "{errno}");
        assert_eq!(sent(&world, Direction::ToClient), 2, "{errno}");
    }
}

#[test]
fn port_unreachable_is_counted_and_the_flow_goes_on() {
    let mut world = world_with_a_flow();
    let (socket, _) = upstream(&world, 0);
    world.kernel.report_error(socket, Errno::ECONNREFUSED);
    world.settle();
    assert_eq!(world.shard.manager().counters().upstream_errors, 1);
    world.request(0, Shape::new(1, 50));
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 2);
}

#[test]
fn a_flow_whose_socket_cannot_be_opened_is_a_counted_drop_and_the_next_one_opens() {
    for (errno, reason) in [
        (Errno::EMFILE, DropReason::NoDescriptors),
        (Errno::ENFILE, DropReason::NoDescriptors),
        (Errno::ENOBUFS, DropReason::NoBuffers),
        (Errno::ENOMEM, DropReason::NoBuffers),
        (Errno::EADDRNOTAVAIL, DropReason::NoPorts),
        (Errno::EAGAIN, DropReason::NoPorts),
        (Errno::EPERM, DropReason::NotPermitted),
        (Errno::EACCES, DropReason::NotPermitted),
        (Errno::ENETUNREACH, DropReason::Unreachable),
        (Errno::EHOSTUNREACH, DropReason::Unreachable),
    ] {
        let mut world = calm_world(2);
        world.kernel.faults().opens.push_back(Some(errno));
        world.request(0, Shape::new(3, 50));
        world.request(0, Shape::new(3, 70));
        world.settle();
        assert_eq!(only_dropped(&world, Direction::ToBackend, reason), 6, "{errno}");
        let manager = world.shard.manager();
        assert_eq!(manager.counters().closed(CloseReason::UpstreamFailed), 1, "{errno}");
        assert_eq!(manager.flow_count(), 0, "{errno}");

        world.request(0, Shape::new(1, 50));
        world.request(1, Shape::new(1, 50));
        world.settle();
        assert_eq!(sent(&world, Direction::ToBackend), 2, "{errno}: it recovers by itself");
    }
}

#[test]
fn while_no_port_is_left_the_kernel_is_asked_once_a_tick() {
    let mut world = calm_world(10);
    world.kernel.faults().opens.extend([Some(Errno::EAGAIN); 2]);
    for tick in 1..=2 {
        for client in 0..10 {
            world.request(client, Shape::new(1, 50));
        }
        world.settle();
        let dropped = only_dropped(&world, Direction::ToBackend, DropReason::NoPorts);
        assert_eq!(dropped, 10 * tick);
        assert_eq!(world.kernel.faults().opens.len() as u64, 2 - tick);
    }
    world.request(0, Shape::new(1, 50));
    world.settle();
    assert_eq!(sent(&world, Direction::ToBackend), 1, "it recovers by itself");
}

#[test]
fn an_error_of_a_send_costs_that_datagram_and_no_other() {
    for (errno, reason) in [
        (Errno::ENOBUFS, DropReason::NoBuffers),
        (Errno::ENOMEM, DropReason::NoBuffers),
        (Errno::EPERM, DropReason::NotPermitted),
        (Errno::EIO, DropReason::SendFailed),
        (Errno::EINVAL, DropReason::SendFailed),
    ] {
        let mut world = world_with_a_flow();
        let sends = [None, Some(SendFault::Error(errno))];
        world.kernel.faults().sends.extend([Some(SendFault::Part(1)), sends[1]]);
        for len in [100, 101, 102] {
            world.request(0, Shape::new(1, len));
        }
        world.settle();
        assert_eq!(only_dropped(&world, Direction::ToBackend, reason), 1, "{errno}");
        assert_eq!(sent(&world, Direction::ToBackend), 1 + 2, "{errno}");
    }
}

#[test]
fn a_route_that_is_gone_costs_the_datagrams_sent_meanwhile() {
    for errno in [Errno::ENETUNREACH, Errno::EHOSTUNREACH] {
        let mut world = world_with_a_flow();
        // The routing table says it again, where ICMP says it once.
        for _ in 0..2 {
            world.kernel.faults().sends.push_back(Some(SendFault::Error(errno)));
        }
        world.request(0, Shape::new(1, 100));
        world.request(0, Shape::new(1, 200));
        world.settle();
        let lost = only_dropped(&world, Direction::ToBackend, DropReason::Unreachable);
        assert_eq!(lost, 1, "{errno}");
        assert_eq!(sent(&world, Direction::ToBackend), 2, "{errno}");
    }
}

#[test]
fn a_client_that_cannot_be_reached_does_not_count_against_its_backend() {
    let mut world = world_with_a_flow();
    let (socket, backend) = upstream(&world, 0);
    world.kernel.faults().sends.push_back(Some(SendFault::Error(Errno::EHOSTUNREACH)));
    world.reply(socket, backend, Shape::new(1, 100));
    world.settle();
    assert_eq!(only_dropped(&world, Direction::ToClient, DropReason::Unreachable), 1);
    assert_eq!(world.shard.manager().counters().upstream_errors, 0);
}

#[test]
fn an_answer_from_a_stranger_goes_nowhere_and_is_counted() {
    let mut world = world_with_a_flow();
    let (socket, backend) = upstream(&world, 0);
    let mut other_port = backend;
    other_port.set_port(backend.port() + 1);
    let stranger = "192.0.2.66:53".parse().unwrap();
    world.kernel.arrive(socket, Incoming::new(other_port, vec![0; 90], 30));
    world.kernel.arrive(socket, Incoming::new(stranger, vec![0; 30], 0));
    world.reply(socket, backend, Shape::new(1, 50));
    world.settle();
    assert_eq!(only_dropped(&world, Direction::ToClient, DropReason::ForeignSource), 4);
    assert_eq!(sent(&world, Direction::ToClient), 1);
}

#[test]
fn a_datagram_cut_short_goes_nowhere_and_is_counted() {
    let mut world = world_with_a_flow();
    let (socket, backend) = upstream(&world, 0);
    let client = world.address_of(0);
    for (at, source, direction) in
        [(world.listener, client, Direction::ToBackend), (socket, backend, Direction::ToClient)]
    {
        let cut = Incoming { is_truncated: true, ..Incoming::new(source, vec![0; 40], 0) };
        let blind = Incoming { is_truncated: false, is_control_truncated: true, ..cut.clone() };
        world.kernel.arrive(at, cut);
        world.kernel.arrive(at, blind);
        world.settle();
        let ledger = ledger(&world, direction);
        assert_eq!(ledger.dropped_for(DropReason::Truncated).datagrams, 1);
        assert_eq!(ledger.dropped_for(DropReason::ControlTruncated).datagrams, 1);
        assert_eq!(ledger.dropped_total().datagrams, 2);
    }
}
