#!/usr/bin/env python3
"""A station outside, as a program of its own: it watches a guest over the network.

    outside.py GUEST_ADDRESS GUEST_MAC DEVICE

It sends an echo request every 2 ms, sends random bytes to the guest's TCP port DOWN and takes bytes
at its own port UP, one connection each, and listens at DEVICE for the guest announcing itself. It
prints a line of JSON when it has begun, and one for each announcement: [time, "arp" or "rarp"]. When
its standard input ends, it ends the connections, and the last line says what it saw:

    echo        sent: the times of all requests; received: [number, time] of the replies in order;
                damaged: replies that say something else
    down, up    bytes and their sha256

Times are CLOCK_MONOTONIC in seconds, so another program can compare them with its own.
"""

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time

DOWN, UP = 9000, 9001
INTERVAL = 0.002
# A tick of the stream to the guest: 1 MB/s, which it can hash under TCG.
CHUNK, TICK = 32768, 0.032
# A busy guest may think so long about a reply.
LATE = 3
# More than anything takes once the end was asked for.
PATIENCE = 120
ROOM = 8 << 20
ICMP_ECHO, ICMP_REPLY = 8, 0
ARP, RARP = 0x0806, 0x8035
SO_RCVBUFFORCE = 33


def _checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


class Echo:
    """Requests in a steady rhythm, and their replies."""

    def __init__(self, address, ended):
        self._ended = ended
        self._id = os.getpid() & 0xffff
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        self._socket.settimeout(0.2)
        self._socket.connect((address, 0))
        self.sent, self.received, self.damaged = [], [], 0

    def _packet(self, kind, number):
        body = struct.pack(">HHQ40s", self._id, number & 0xffff, number, bytes(range(40)))
        return struct.pack(">BBH", kind, 0, _checksum(struct.pack(">BBH", kind, 0, 0) + body)) + body

    def send(self):
        """Sends until the end."""
        due = time.monotonic()
        while not self._ended.is_set():
            packet = self._packet(ICMP_ECHO, len(self.sent))
            self.sent.append(time.monotonic())
            self._socket.send(packet)
            due += INTERVAL
            time.sleep(max(0, due - time.monotonic()))

    def receive(self):
        """Receives until the end, and then what is still on its way."""
        last = time.monotonic()
        while True:
            try:
                packet = self._socket.recv(2048)
            except TimeoutError:
                if self._ended.is_set() and time.monotonic() - last > LATE:
                    return
                continue
            now = last = time.monotonic()
            message = packet[4 * (packet[0] & 15):]
            if len(message) < 16 or message[0] != ICMP_REPLY:
                continue
            identity, _, number = struct.unpack(">HHQ", message[4:16])
            if identity == self._id and message == self._packet(ICMP_REPLY, number):
                self.received.append((number, now))
            else:
                self.damaged += 1


class Stream:
    """One direction of TCP: what went through, and its digest."""

    def __init__(self):
        self._digest, self.bytes = hashlib.sha256(), 0

    def _add(self, data):
        self._digest.update(data)
        self.bytes += len(data)

    def report(self):
        """What went through."""
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}

    def down(self, address, ended):
        """Sends random bytes until the end."""
        with socket.create_connection((address, DOWN), PATIENCE) as connection:
            due = time.monotonic()
            while not ended.is_set():
                data = os.urandom(CHUNK)
                connection.sendall(data)
                self._add(data)
                due = max(due + TICK, time.monotonic() - TICK)
                time.sleep(max(0, due - time.monotonic()))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    def up(self, listener):
        """Takes what one connection brings."""
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE)
        with connection:
            while data := connection.recv(1 << 20):
                self._add(data)


def say(what):
    """A line of JSON."""
    print(json.dumps(what), flush=True)


def listen(device, mac, protocol, ended):
    """Says when the guest announces itself, by gratuitous ARP or by RARP."""
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    packets.bind((device, protocol))
    packets.settimeout(0.2)
    while not ended.is_set():
        try:
            frame = packets.recv(2048)
        except TimeoutError:
            continue
        gratuitous = frame[28:32] == frame[38:42]
        if frame[6:12] == mac and (protocol == RARP or gratuitous):
            say([time.monotonic(), "rarp" if protocol == RARP else "arp"])


def main():
    address, mac, device = sys.argv[1:]
    mac = bytes.fromhex(mac.replace(":", ""))
    ended = threading.Event()
    echo, down, up = Echo(address, ended), Stream(), Stream()
    listener = socket.create_server(("", UP))
    listener.settimeout(PATIENCE)
    work = [(echo.receive,), (echo.send,), (down.down, address, ended), (up.up, listener),
            (listen, device, mac, ARP, ended), (listen, device, mac, RARP, ended)]
    threads = [threading.Thread(target=job, args=arguments) for job, *arguments in work]
    for thread in threads:
        thread.start()
    say("ready")
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    say({"echo": {"sent": echo.sent, "received": echo.received, "damaged": echo.damaged},
         "down": down.report(), "up": up.report()})


if __name__ == "__main__":
    main()
