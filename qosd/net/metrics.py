"""The network's metric families: there only while `[net] uplinks` lists something."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.exposition import CounterMetricFamily, GaugeMetricFamily, Metric
from qosd.net.status import IngressStatus, NetView, UplinkView

_WORKLOADS_MAX = 50


def collect(net: NetView) -> Iterator[Metric]:
    states = GaugeMetricFamily("qosd_net_uplinks", "Configured uplinks by state.", labels=["state"])
    shaped = sum(uplink.shaped for uplink in net.uplinks)
    counts = {"shaped": shaped, "unshaped": len(net.uplinks) - shaped, "refused": len(net.refused)}
    for state, count in counts.items():
        states.add_metric([state], count)
    yield states
    degraded = GaugeMetricFamily("qosd_net_degraded", "What of shaping does not work on this host.")
    degraded.add_metric([], len(net.degraded))
    yield degraded
    yield CounterMetricFamily(
        "qosd_net_netlink_requests", "Requests that shape or count.", net.netlink_requests
    )
    yield from _rates(net.uplinks)
    yield from _classes(net.uplinks)
    yield _workloads(net)
    if net.be_ingress is not None:
        yield from _ingress(net.be_ingress)


def _rates(uplinks: tuple[UplinkView, ...]) -> Iterator[Metric]:
    link = GaugeMetricFamily("qosd_net_link_bits_per_second", "Speed of the link.", labels=["uplink"])
    ceiling = GaugeMetricFamily(
        "qosd_net_be_ceiling_bits_per_second", "What BE may send on a shaped uplink.", labels=["uplink"]
    )
    use = GaugeMetricFamily(
        "qosd_net_egress_bits_per_second", "What a tier sent in the last tick.", labels=["uplink", "tier"]
    )
    for uplink in uplinks:
        link.add_metric([uplink.name], uplink.link_bps)
        if uplink.shaped and uplink.be_ceiling_bps is not None:
            ceiling.add_metric([uplink.name], uplink.be_ceiling_bps)
        for tier, bps in (("ls", uplink.ls_bps), ("be", uplink.be_bps)):
            if bps is not None:
                use.add_metric([uplink.name, tier], bps)
    yield from (link, ceiling, use)


def _classes(uplinks: tuple[UplinkView, ...]) -> Iterator[Metric]:
    labels = ["uplink", "class"]
    sent = CounterMetricFamily("qosd_net_class_sent_bytes", "Bytes a class sent.", labels=labels)
    drops = CounterMetricFamily("qosd_net_class_drops", "Packets a class dropped.", labels=labels)
    backlog = GaugeMetricFamily("qosd_net_class_backlog_bytes", "Bytes that wait in a class.", labels=labels)
    for uplink in uplinks:
        for each in uplink.classes:
            sent.add_metric([uplink.name, each.name], each.sent_bytes)
            drops.add_metric([uplink.name, each.name], each.drops)
            backlog.add_metric([uplink.name, each.name], each.backlog_bytes)
    yield from (sent, drops, backlog)


def _ingress(ingress: IngressStatus) -> Iterator[Metric]:
    limit = GaugeMetricFamily("qosd_net_be_ingress_max_bits_per_second", "What all of BE may receive.")
    limit.add_metric([], ingress.max_bps)
    yield limit
    yield CounterMetricFamily(
        "qosd_net_be_received_bytes", "Bytes of IP packets that BE received.", ingress.received_bytes
    )
    yield CounterMetricFamily(
        "qosd_net_be_ingress_dropped_bytes", "The same, dropped above the limit.", ingress.dropped_bytes
    )


def _workloads(net: NetView) -> Metric:
    sent = CounterMetricFamily(
        "qosd_net_workload_sent_bytes",
        "Bytes of IP packets a workload sent over all devices.",
        labels=["tier", "workload", "cgroup"],
    )
    for each in sorted(net.egress, key=lambda each: -each.sent_bytes)[:_WORKLOADS_MAX]:
        sent.add_metric([each.tier, each.workload, each.path], each.sent_bytes)
    return sent
