"""Commands to a running QEMU, over its QMP socket."""

import json
import socket

import host

PATIENCE = 30


class Qmp:
    """A connection to the socket that `Settings.qmp` names. One client at a time."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            raise host.Problem(f"no QMP socket at {path}: {error}") from error
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._lines.readline()  # the greeting
        self.run("qmp_capabilities")

    def run(self, command, **arguments):
        """Runs a command and returns its answer; what QEMU refuses is a Problem."""
        request = {"execute": command, "arguments": {
            name.replace("_", "-"): value for name, value in arguments.items()}}
        try:
            self._socket.sendall(json.dumps(request).encode())
            while True:
                line = self._lines.readline()
                if not line:
                    raise host.Problem(f"QEMU ended instead of doing {command}")
                answer = json.loads(line)
                if "error" in answer:
                    raise host.Problem(f"QEMU refuses {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise host.Problem(f"QMP {command}: {error}") from error

    def close(self):
        """Lets the socket go."""
        self._lines.close()
        self._socket.close()
