// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * What a cgroup_skb program cannot do, at tc's hooks: the DSCP of a packet that leaves (cgroup_skb may not write to
 * packets), and the tier of packets from other network namespaces (they lose priority and socket on the way).
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NEXT (-1) /* TC_ACT_UNSPEC, TCX_NEXT: let the others decide */
#define NO_DSCP 64
#define MAX_LEVEL 16
#define CHECKSUM_AT (ETH_HLEN + 10) /* of the IPv4 header */

struct settings {
	__u32 be_class; /* where forwarded BE packets go */
	__u32 ls_class;
	__u32 first_be_minor;
	__u32 mark; /* one bit of skb->mark, 0: none */
	__u32 be_dscp; /* NO_DSCP: leave it */
	__u32 ls_dscp;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} uplink_settings SEC(".maps");

/* The BE roots' cgroup ids. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} uplink_be_roots SEC(".maps");

/* What came from other network namespaces and went to BE's class, by ifindex of the uplink. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} uplink_forwarded SEC(".maps");

static __always_inline void count_forwarded(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	__u64 *bytes = bpf_map_lookup_elem(&uplink_forwarded, &ifindex);

	if (bytes)
		*bytes += skb->len;
}

static __always_inline void mark_ipv4(struct __sk_buff *skb, __u32 dscp)
{
	union {
		__u8 bytes[2]; /* version and header length, type of service */
		__u16 word;
	} old, new;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &old, sizeof(old)))
		return;
	new = old;
	new.bytes[1] = dscp << 2 | (old.bytes[1] & 3); /* the low two bits are ECN's */
	if (new.word == old.word)
		return;
	if (bpf_l3_csum_replace(skb, CHECKSUM_AT, old.word, new.word, sizeof(new.word)))
		return;
	bpf_skb_store_bytes(skb, ETH_HLEN, &new, sizeof(new), 0);
}

static __always_inline void mark_ipv6(struct __sk_buff *skb, __u32 dscp)
{
	__u8 old[2], new[2]; /* version, traffic class, the flow label's first bits */

	if (bpf_skb_load_bytes(skb, ETH_HLEN, old, sizeof(old)))
		return;
	new[0] = (old[0] & 0xf0) | dscp >> 2;
	new[1] = (old[1] & 0x3f) | (dscp & 3) << 6;
	if (new[0] != old[0] || new[1] != old[1])
		bpf_skb_store_bytes(skb, ETH_HLEN, new, sizeof(new), 0);
}

SEC("tc")
int uplink_egress(struct __sk_buff *skb)
{
	__u32 zero = 0, dscp = NO_DSCP;
	struct settings *set = bpf_map_lookup_elem(&uplink_settings, &zero);
	int be;

	if (!set)
		return NEXT;
	be = skb->priority >> 16 == set->be_class >> 16 && (skb->priority & 0xffff) >= set->first_be_minor;
	if (!be && set->mark && skb->mark & set->mark) {
		skb->priority = set->be_class;
		count_forwarded(skb);
		be = 1;
	}
	if (be)
		dscp = set->be_dscp;
	else if (skb->priority == set->ls_class)
		dscp = set->ls_dscp;
	if (dscp >= NO_DSCP)
		return NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		mark_ipv4(skb, dscp);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		mark_ipv6(skb, dscp);
	return NEXT;
}

/* The host's end of a container's veth pair: the sender's socket is still known here, further on it is not. */
SEC("tc")
int veth_ingress(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct settings *set = bpf_map_lookup_elem(&uplink_settings, &zero);

	if (!set || !set->mark)
		return NEXT;
#pragma unroll
	for (int level = 1; level <= MAX_LEVEL; level++) {
		__u64 id = bpf_skb_ancestor_cgroup_id(skb, level);

		if (!id)
			break;
		if (bpf_map_lookup_elem(&uplink_be_roots, &id)) {
			skb->mark |= set->mark;
			break;
		}
	}
	return NEXT;
}

char LICENSE[] SEC("license") = "GPL v2";
