"""What the guests' network does meanwhile: a stream that vm2 watches, by `probe` in both guests."""

import json
import time

import host

ECHO_INTERVAL_US = 1000
PORT = 7000
# Before the event: the stream is up to speed. After it: what is lost then would be noticed, and TCP
# has sent again (its pause doubles from 0.2 s on).
BEFORE, AFTER = 1.0, 2.0
RESUME_PATIENCE = 30
END_PATIENCE = 20
SETTLED = "/run/settled"


class Watch:
    """One program in a guest, from its start to the line of JSON that it ends with."""

    def __init__(self, guest, name, arguments):
        self._guest, self._name = guest, name
        guest.check(f"probe {name} {arguments} >/run/{name}.out 2>&1 & echo $! >/run/{name}.pid")

    def end(self):
        """Ends it and returns what it counted."""
        pid = f"$(cat /run/{self._name}.pid)"
        said = self._guest.check(
            f"kill -TERM {pid} 2>/dev/null; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done; "
            f"cat /run/{self._name}.out", END_PATIENCE)
        try:
            return json.loads(said)
        except ValueError as error:
            raise host.Problem(f"probe {self._name} in {self._guest.name} said: {said}") from error


def _during(event, bed, recovered):
    time.sleep(BEFORE)
    told = event.run(bed) or {}
    recovered()
    time.sleep(AFTER)
    return told


def _answered(bed):
    """Waits until vm1 answers vm2 again."""
    deadline = time.monotonic() + RESUME_PATIENCE
    address = bed.addresses["vm1"][0]
    while bed.guests[1].run(f"ping -q -c 1 -W 1 {address}", 5)[0] != 0:
        if time.monotonic() > deadline:
            raise host.Problem(f"{bed.label}: vm1 doesn't answer within {RESUME_PATIENCE} s")


def echo(event, bed):
    """Numbered echo requests from vm2, which vm1's kernel answers: seconds without an answer, and
    how many answers were missed."""
    vm2 = bed.guests[1]
    vm2.check("echo 0 0 >/proc/sys/net/ipv4/ping_group_range")
    watch = Watch(vm2, "echo", f"{bed.addresses['vm1'][0]} {ECHO_INTERVAL_US}")
    told = _during(event, bed, lambda: _answered(bed))
    counted = watch.end()
    return {"gap": counted["longest"], "lost": counted["lost"], "twice": counted["twice"],
            "sent": counted["sent"], "gaps": counted["gaps"], **told}


def tcp(event, bed):
    """A TCP stream from vm1 to vm2, as fast as it goes, whose content is checked: the longest time
    in which vm2 got nothing of it."""
    vm1, vm2 = bed.guests
    sink = Watch(vm2, "sink", PORT)
    source = Watch(vm1, "source", f"{bed.addresses['vm2'][0]} {PORT}")
    told = _during(event, bed, lambda: _answered(bed))
    sent = source.end()
    received = sink.end()
    if received["received"] != sent["sent"]:
        raise host.Problem(f"{bed.label}, {event.label}: {sent['sent']} bytes were sent and "
                           f"{received['received']} received")
    return {"gap": received["longest"], "retransmits": sent["retransmits"],
            "bytes": sent["sent"], "gaps": received["gaps"], **told}
