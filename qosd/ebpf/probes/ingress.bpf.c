// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How much may all of BE receive? One token bucket for every cgroup this is attached to, by the time at which it is
 * full again (the generic cell rate algorithm): a packet moves that time on by what it takes at the limit, and is
 * dropped if it is more than the bucket's depth ahead.
 *
 * It runs where a socket filter does, after the socket was found, so that the cgroup is known, in whichever network
 * namespace. TCP takes a drop there for a loss and slows down; so does QUIC.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PASS 1
#define DROP 0
#define LOOPBACK 1 /* the ifindex of lo in every network namespace (LOOPBACK_IFINDEX) */
#define BARE 128 /* bytes: a TCP packet up to here is an acknowledgement or a handshake */
#define IPV4_PROTOCOL 9 /* offsets in the headers */
#define IPV6_NEXT_HEADER 6

struct limit {
	__u64 scaled_ns; /* a byte's time at the limit, << SHIFT */
	__u64 depth_ns; /* of the bucket */
};

#define SHIFT 20

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limit);
} ingress_limit SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ingress_full_ns SEC(".maps");

struct received {
	__u64 bytes; /* IP packets that went on to their sockets */
	__u64 dropped_bytes;
	__u64 dropped_packets; /* as the device or GRO made them: up to 64 KiB each */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct received);
} ingress_received SEC(".maps");

static __always_inline int is_tcp(struct __sk_buff *skb)
{
	__u8 protocol = 0;

	bpf_skb_load_bytes(skb, skb->protocol == bpf_htons(ETH_P_IP) ? IPV4_PROTOCOL : IPV6_NEXT_HEADER,
			   &protocol, sizeof(protocol));
	return protocol == IPPROTO_TCP;
}

/* Two CPUs at once may both let a packet in at the end of the bucket; both are charged, so that the rate holds. */
static __always_inline int over(struct limit *limit, __u64 *full_ns, __u32 len, struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_ns(), full = *full_ns, ahead;

	if (full < now) {
		__sync_val_compare_and_swap(full_ns, full, now);
		full = now;
	}
	ahead = full - now;
	if (ahead > limit->depth_ns && !(len <= BARE && is_tcp(skb)))
		return 1;
	__sync_fetch_and_add(full_ns, len * limit->scaled_ns >> SHIFT);
	return 0;
}

SEC("cgroup_skb/ingress")
int ingress_police(struct __sk_buff *skb)
{
	__u32 zero = 0, len = skb->len;
	struct limit *limit = bpf_map_lookup_elem(&ingress_limit, &zero);
	__u64 *full_ns = bpf_map_lookup_elem(&ingress_full_ns, &zero);
	struct received *received = bpf_map_lookup_elem(&ingress_received, &zero);

	if (!limit || !full_ns || !received || skb->ifindex == LOOPBACK)
		return PASS;
	if (limit->scaled_ns && over(limit, full_ns, len, skb)) {
		received->dropped_bytes += len;
		received->dropped_packets++;
		return DROP;
	}
	received->bytes += len;
	return PASS;
}

char LICENSE[] SEC("license") = "GPL v2";
