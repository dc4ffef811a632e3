//! Everything at once, as seeds decide.

use std::time::Duration;

use flowgate::datapath::token::Token;
use flowgate_core::config::{Accept, ManagerConfig, SendProxyProtocol};
use flowgate_core::random::Random;
use flowgate_core::{Direction, UpstreamId};
use flowgate_tests::fake_kernel::{Faults, Incoming};
use flowgate_tests::shell_world::{Shape, ShellWorld};
use nix::errno::Errno;

use super::config;

const CLIENTS: u32 = 12;

/// The seeds to try: `SEED`, or the first of them, as many as `SEEDS` says.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    number("SEED").map_or(0..number("SEEDS").unwrap_or(100), |seed| seed..seed + 1)
}

#[test]
fn whatever_the_kernel_does_each_datagram_goes_out_once_or_is_counted_once() {
    for seed in seeds() {
        // Shown where it fails: the last line is the seed to try again.
        eprintln!("SEED={seed}");
        run(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_datagrams_in_the_same_order() {
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

/// Plays a world out, has everything that still waits get through, and returns what stands for
/// all that was sent.
fn run(seed: u64) -> u64 {
    let mut dice = Random::new(seed);
    let config = any_config(&mut dice);
    let rate = [0, 20, 150][dice.below(3) as usize];
    let mut world = ShellWorld::new(config, CLIENTS, seed, Faults::by_chance(seed, rate));
    for _ in 0..300 {
        step(&mut world, &mut dice);
    }
    calm_down(&mut world);
    let unread: usize =
        world.kernel.upstreams().iter().map(|(id, _)| world.kernel.unread(*id)).sum();
    assert_eq!(unread + world.kernel.unread(world.listener), 0, "stranded in a socket");
    let own = world.kernel.own_sockets();
    assert!(own.iter().all(|id| world.kernel.unread(*id) == 0), "stranded in a client's own");
    for direction in Direction::ALL {
        assert_eq!(world.shard.queued(direction), 0, "stranded in a queue: {direction:?}");
    }
    world.end_flows();
    assert_eq!(world.shard.manager().flow_count(), 0);
    assert_eq!(world.kernel.upstreams().len(), 0, "a socket outlived its flow");
    world.fingerprint()
}

fn any_config(dice: &mut Random) -> ManagerConfig {
    let mut config = config();
    config.max_flows = 4 + dice.below(16) as u32;
    config.max_datagram_size = if dice.below(4) == 0 { 600 } else { 65_507 };
    config.cluster.responses = [0, 0, 3][dice.below(3) as usize];
    config.cluster.requests = [0, 0, 50][dice.below(3) as usize];
    config.accept = [Accept::Shared, Accept::Connected, Accept::Confirmed][dice.below(3) as usize];
    config.cluster.send_proxy_protocol =
        [SendProxyProtocol::Off, SendProxyProtocol::First, SendProxyProtocol::Every]
            [dice.below(3) as usize];
    config
}

fn any_shape(dice: &mut Random) -> Shape {
    let len = [Shape::SHORTEST, 64, 500, 1_200, 9_000, 65_400][dice.below(6) as usize];
    let fits = (65_000 / len).clamp(1, 130) as u64;
    Shape {
        datagrams: if dice.below(2) == 0 { 1 } else { 1 + dice.below(fits) as usize },
        len,
        short_by: [0, 0, 1, 37][dice.below(4) as usize],
        tos: [0, 0, 0x02, 0xB8][dice.below(4) as usize],
    }
}

/// A few things happen.
fn step(world: &mut ShellWorld, dice: &mut Random) {
    for _ in 0..dice.below(6) {
        world.request(dice.below(u64::from(CLIENTS)) as u32, any_shape(dice));
    }
    let own = world.kernel.own_sockets();
    if !own.is_empty() && dice.below(8) == 0 {
        let socket = own[dice.below(own.len() as u64) as usize];
        world.kernel.report_error(socket, Errno::ECONNREFUSED);
    }
    let upstreams = world.kernel.upstreams();
    if !upstreams.is_empty() {
        for _ in 0..dice.below(5) {
            let (socket, backend) = upstreams[dice.below(upstreams.len() as u64) as usize];
            match dice.below(12) {
                0 => {
                    let errno = world.kernel.faults().any_icmp();
                    world.kernel.report_error(socket, errno);
                }
                1 => world.kernel.set_room(socket, dice.below(40) as usize),
                2 => world.kernel.set_room(socket, usize::MAX),
                3 => world.kernel.arrive(socket, from_a_stranger()),
                4 => world.kernel.arrive(socket, cut_short(backend, dice)),
                5 => world.kernel.wake(socket),
                6 => {
                    let refusals = [Errno::EIO, Errno::EINVAL, Errno::EMSGSIZE];
                    let refusal = refusals[dice.below(3) as usize];
                    let to = world.address_of(dice.below(u64::from(CLIENTS)) as u32);
                    world.kernel.refuse_gso(socket, backend, Some(refusal));
                    world.kernel.refuse_gso(world.listener, to, Some(refusal));
                }
                _ => world.reply(socket, backend, any_shape(dice)),
            }
        }
    }
    match dice.below(8) {
        0 => world.kernel.set_room(world.listener, dice.below(30) as usize),
        1 => world.kernel.set_room(world.listener, usize::MAX),
        2 => world.pass(Duration::from_secs(dice.below(90))),
        _ => {}
    }
    let number = dice.below(30) as u32;
    let stale = match dice.below(2) {
        0 => Token::Upstream { shard: 0, upstream: UpstreamId::new(number, number as u16) },
        _ => Token::Client { shard: 0, slot: number },
    };
    world.poll(dice.below(10) as usize, (dice.below(10) == 0).then_some(stale));
    if dice.below(4) > 0 {
        world.tick();
    }
}

fn from_a_stranger() -> Incoming {
    Incoming::new("192.0.2.66:666".parse().unwrap(), vec![0; 300], 100)
}

fn cut_short(source: std::net::SocketAddr, dice: &mut Random) -> Incoming {
    let is_truncated = dice.below(2) == 0;
    let whole = Incoming::new(source, vec![0; 50], 0);
    Incoming { is_truncated, is_control_truncated: !is_truncated, ..whole }
}

/// Nothing fails from now on, and all send buffers drain.
fn calm_down(world: &mut ShellWorld) {
    world.kernel.faults().stop();
    for (socket, _) in world.kernel.upstreams() {
        world.kernel.set_room(socket, usize::MAX);
    }
    world.kernel.set_room(world.listener, usize::MAX);
    world.settle();
}
