// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Which traffic class does a workload's egress go to? HTB takes a valid class id in skb->priority as the class.
 *
 * One program, attached to each workload's root; the cgroup storage is that of the cgroup it is attached to, also
 * for packets of the cgroups below. Where roots nest, the inner one runs first: what it gave a class with a limit of
 * its own keeps it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

#define LAST_SHARED 0x20 /* a001:20: BE without a limit of its own; the classes above are of single workloads */

struct class {
	__u32 priority; /* major << 16 | minor; 0: count only */
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, struct class);
} skbprio_class SEC(".maps");

struct traffic {
	__u64 bytes; /* of IP packets, headers once for each packet as the stack had it */
	__u64 packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, struct traffic);
} skbprio_traffic SEC(".maps");

/* What BE handed to the devices that are listed here, by ifindex: frames as the stack had them. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} skbprio_device SEC(".maps");

static __always_inline void count_device(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	__u64 *bytes = bpf_map_lookup_elem(&skbprio_device, &ifindex);

	if (bytes)
		*bytes += skb->len + ETH_HLEN;
}

SEC("cgroup_skb/egress")
int skbprio_egress(struct __sk_buff *skb)
{
	struct class *class = bpf_get_local_storage(&skbprio_class, 0);
	struct traffic *traffic = bpf_get_local_storage(&skbprio_traffic, 0);
	__u32 segments = skb->gso_segs;
	int limited;

	traffic->bytes += skb->len;
	traffic->packets += segments ? segments : 1;
	limited = (skb->priority ^ class->priority) >> 16 == 0 && (skb->priority & 0xffff) > LAST_SHARED;
	if (class->priority && !limited)
		skb->priority = class->priority;
	if ((class->priority & 0xffff) >= LAST_SHARED)
		count_device(skb);
	return 1; /* let it pass */
}

char LICENSE[] SEC("license") = "GPL v2";
