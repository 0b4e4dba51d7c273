"""Run in the peer's namespace: what arrives there, a JSON line per (family, destination port, DSCP)."""

from __future__ import annotations

import json
import socket
import struct
import sys

ETH_P_ALL = 3


def parse(frame: bytes) -> tuple[int, int, int, bool] | None:
    """(family, destination port, DSCP, IPv4 header checksum right) of a TCP or UDP packet."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == 0x0800 and frame[23] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        header = frame[14:34]
        total = sum(struct.unpack("!10H", header))
        right = (total & 0xFFFF) + (total >> 16) in (0xFFFF, 0x1FFFE)
        return 4, struct.unpack_from("!H", frame, 36)[0], frame[15] >> 2, right
    if ethertype == 0x86DD and frame[20] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        (first,) = struct.unpack_from("!I", frame, 14)
        return 6, struct.unpack_from("!H", frame, 56)[0], first >> 22 & 0x3F, True
    return None


def main() -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((sys.argv[1], ETH_P_ALL))
    seen = set()
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    while True:
        frame, address = sock.recvfrom(1 << 17)
        found = parse(frame) if address[2] != socket.PACKET_OUTGOING else None
        if found is not None and found not in seen:
            seen.add(found)
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
