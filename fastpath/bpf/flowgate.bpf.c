// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT
//
// Forwards datagrams of flows that Flowgate has decided on: looks the packet up, rewrites addresses
// and ports, counts, and sends it on. Attached at tc ingress.
//
// It never drops, and changes nothing in a packet that it does not forward: whatever is unknown or
// unusual goes on to the sockets, which know what to do.
//
// bpf/build.sh compiles it; src/layout.rs has the same structs; src/rewrite.rs says in Rust what it
// does to a packet, and a test compares the two.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define be16(x) ((__be16)__builtin_bswap16(x))

// How BTF describes a map to the loader.
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*bpf_ktime_get_coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*bpf_skb_pull_data)(struct __sk_buff *skb, __u32 length) = (void *)BPF_FUNC_skb_pull_data;
static __s64 (*bpf_csum_update)(struct __sk_buff *skb, __wsum sum) = (void *)BPF_FUNC_csum_update;
static long (*bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;
static long (*bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *hop, int length, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

// Whose datagram it is.
struct tuple4 {
	__be32 source, destination;
	__be16 source_port, destination_port;
};
struct tuple6 {
	__be32 source[4], destination[4];
	__be16 source_port, destination_port;
};

// What becomes of it. IPv4 addresses stand in the first word.
struct entry {
	__be32 source[4], destination[4];
	__be16 source_port, destination_port;
	__u32 address_change, port_change; // ones' complement sums that the rewriting adds to checksums
	__u32 account;
	__u32 gate, epoch; // in force while gates[gate].epoch == epoch
	__u32 ifindex;
	__be32 next_hop[4];
	__u16 next_hop_family;
	__u16 max_len; // the longest IP packet that it forwards
	__u16 worker;  // whose flow it is
	__u16 pending; // the worker may have earlier datagrams of the flow still to send
};

struct account {
	__u64 datagrams, bytes;
	__u64 last_ns;   // when the last datagram was forwarded; before that, when the entry was made
	__u64 passed_ns; // while pending: when a datagram last went to the sockets. Then OPEN or FORCED
};
#define OPEN 0ULL
#define FORCED (~0ULL)

struct gate {
	__u32 epoch, reserved;
};

struct turn {
	__u64 done_ns;  // whatever had arrived at the sockets before then has been sent on
	__u64 alive_ns; // when the worker last ran
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC); // what is removed is freed only when nobody reads it any more
	__uint(max_entries, 131072);
	__type(key, struct tuple4);
	__type(value, struct entry);
} entries4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct tuple6);
	__type(value, struct entry);
} entries6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct account);
} accounts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct gate);
} gates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct turn);
} turns SEC(".maps");

#define TO_SOCKET_NS 50000ULL             // a packet that is let through is in its socket after this
#define PENDING_MAX_NS 100000000ULL       // a flow that never pauses is forwarded after this all the same
#define WORKER_TIMEOUT_NS 10000000000ULL  // a worker that has not run for so long may be gone

enum { IPV4 = 2, IPV6 = 10 }; // AF_INET, AF_INET6
enum { TO_SOCKETS = -1 };     // TCX_NEXT; TC_ACT_UNSPEC for clsact

// Whether a datagram of the flow may still be under way by the sockets, where this one would overtake it.
INLINE int is_pending(struct entry *entry, struct account *account, struct turn *turn) {
	__u64 now = bpf_ktime_get_ns();
	if (account->passed_ns + TO_SOCKET_NS < turn->done_ns) {
		account->passed_ns = OPEN;
	} else if (now > account->last_ns + PENDING_MAX_NS) {
		account->passed_ns = FORCED;
	} else {
		account->passed_ns = now;
		return 1;
	}
	entry->pending = 0;
	return 0;
}

// The account of an entry that is in force; nothing of one that is not, or not yet.
INLINE struct account *admit(struct entry *entry) {
	__u32 gate = entry->gate, slot = entry->account, worker = entry->worker;
	struct gate *open = bpf_map_lookup_elem(&gates, &gate);
	struct account *account = bpf_map_lookup_elem(&accounts, &slot);
	struct turn *turn = bpf_map_lookup_elem(&turns, &worker);
	if (!open || !account || !turn || *(volatile __u32 *)&open->epoch != entry->epoch) return 0;
	if (bpf_ktime_get_coarse_ns() > turn->alive_ns + WORKER_TIMEOUT_NS) return 0;
	if (entry->pending && is_pending(entry, account, turn)) return 0;
	return account;
}

INLINE void count(struct account *account, __u32 datagrams, __u32 bytes) {
	__sync_fetch_and_add(&account->datagrams, datagrams);
	__sync_fetch_and_add(&account->bytes, bytes);
	account->last_ns = bpf_ktime_get_coarse_ns();
}

// How many datagrams a packet holds; 0 if that cannot be told. A packet that offloads have joined says how
// large each was: `payload` octets in segments of gso_size.
INLINE __u32 count_datagrams(struct __sk_buff *skb, __u32 payload) {
	__u32 size = skb->gso_size, segments = skb->gso_segs;
	if (!size) return 1;
	return segments && payload <= size * segments && payload > size * (segments - 1) ? segments : 0;
}

INLINE __u16 fold(__u32 sum) {
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// Makes the headers readable and writable. Returns where they begin, or nothing if the packet is shorter.
INLINE void *headers(struct __sk_buff *skb, __u32 length) {
	if ((void *)(long)skb->data + length > (void *)(long)skb->data_end) {
		if (skb->len < length || bpf_skb_pull_data(skb, length)) return 0;
		if ((void *)(long)skb->data + length > (void *)(long)skb->data_end) return 0;
	}
	return (void *)(long)skb->data;
}

// Updates the UDP checksum, which the sender's offload may have left to be finished, or the receiver's has
// summed up already: the helper knows of both. Fails, without a change, if there is no memory for a copy of a
// packet that others read too; once it is our own, the second call cannot fail.
INLINE long update_udp_check(struct __sk_buff *skb, __u32 at, struct entry *entry) {
	long error = bpf_l4_csum_replace(skb, at, 0, entry->address_change, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
	if (!error) bpf_l4_csum_replace(skb, at, 0, entry->port_change, BPF_F_MARK_MANGLED_0);
	return error;
}

INLINE long send(struct entry *entry) {
	struct bpf_redir_neigh hop = {.nh_family = entry->next_hop_family};
	__builtin_memcpy(hop.ipv6_nh, entry->next_hop, sizeof hop.ipv6_nh);
	return bpf_redirect_neigh(entry->ifindex, &hop, sizeof hop, 0);
}

#define HEADERS4 (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr))
#define HEADERS6 (ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct udphdr))
#define UDP_CHECK 6

INLINE long forward4(struct __sk_buff *skb) {
	struct iphdr *ip = headers(skb, HEADERS4);
	if (!ip) return TO_SOCKETS;
	ip = (void *)ip + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	int is_fragment = ip->frag_off & be16(0x3fff);
	if (ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP || is_fragment || ip->ttl < 2) return TO_SOCKETS;

	struct tuple4 tuple = {ip->saddr, ip->daddr, udp->source, udp->dest};
	struct entry *entry = bpf_map_lookup_elem(&entries4, &tuple);
	if (!entry) return TO_SOCKETS;

	__u32 length = be16(ip->tot_len), overhead = sizeof *ip + sizeof *udp;
	if (length < overhead || ETH_HLEN + length > skb->len || udp->len != be16(length - sizeof *ip)) return TO_SOCKETS;
	__u32 payload = length - overhead, datagrams = count_datagrams(skb, payload);
	__u32 longest = skb->gso_size ? skb->gso_size + overhead : length;
	if (!datagrams || longest > entry->max_len) return TO_SOCKETS;
	struct account *account = admit(entry);
	if (!account || update_udp_check(skb, ETH_HLEN + sizeof *ip + UDP_CHECK, entry)) return TO_SOCKETS;
	ip = headers(skb, HEADERS4); // the helpers may have moved them; they cannot have become fewer
	if (!ip) return TO_SOCKETS;
	ip = (void *)ip + ETH_HLEN;
	udp = (void *)(ip + 1);
	ip->saddr = entry->source[0];
	ip->daddr = entry->destination[0];
	ip->ttl--;
	ip->check = ~fold((__u16)~ip->check + entry->address_change + (__u16)~be16(0x0100));
	udp->source = entry->source_port;
	udp->dest = entry->destination_port;
	count(account, datagrams, payload);
	return send(entry);
}

INLINE long forward6(struct __sk_buff *skb) {
	struct ipv6hdr *ip = headers(skb, HEADERS6);
	if (!ip) return TO_SOCKETS;
	ip = (void *)ip + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	if (ip->version != 6 || ip->nexthdr != IPPROTO_UDP || ip->hop_limit < 2) return TO_SOCKETS;

	struct tuple6 tuple;
	__builtin_memcpy(tuple.source, &ip->saddr, sizeof tuple.source);
	__builtin_memcpy(tuple.destination, &ip->daddr, sizeof tuple.destination);
	tuple.source_port = udp->source;
	tuple.destination_port = udp->dest;
	struct entry *entry = bpf_map_lookup_elem(&entries6, &tuple);
	if (!entry) return TO_SOCKETS;

	__u32 length = sizeof *ip + be16(ip->payload_len), overhead = sizeof *ip + sizeof *udp;
	if (length < overhead || ETH_HLEN + length > skb->len || udp->len != ip->payload_len || !udp->check) return TO_SOCKETS;
	__u32 payload = length - overhead, datagrams = count_datagrams(skb, payload);
	__u32 longest = skb->gso_size ? skb->gso_size + overhead : length;
	if (!datagrams || longest > entry->max_len) return TO_SOCKETS;
	struct account *account = admit(entry);
	if (!account || update_udp_check(skb, ETH_HLEN + sizeof *ip + UDP_CHECK, entry)) return TO_SOCKETS;
	// A sum of the whole packet, where the receiver's offload has left one, changes only by the hop limit:
	// what the addresses add, the UDP checksum takes away. The helper has taken away the addresses.
	bpf_csum_update(skb, fold(entry->address_change + (__u16)~be16(0x0001)));
	ip = headers(skb, HEADERS6);
	if (!ip) return TO_SOCKETS;
	ip = (void *)ip + ETH_HLEN;
	udp = (void *)(ip + 1);
	__builtin_memcpy(&ip->saddr, entry->source, sizeof ip->saddr);
	__builtin_memcpy(&ip->daddr, entry->destination, sizeof ip->daddr);
	ip->hop_limit--;
	udp->source = entry->source_port;
	udp->dest = entry->destination_port;
	count(account, datagrams, payload);
	return send(entry);
}

SEC("classifier") int flowgate(struct __sk_buff *skb) {
	// A packet to another host that the card has seen all the same, or of a VLAN, is not for us.
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present) return TO_SOCKETS;
	if (skb->protocol == be16(ETH_P_IP)) return forward4(skb);
	if (skb->protocol == be16(ETH_P_IPV6)) return forward6(skb);
	return TO_SOCKETS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
