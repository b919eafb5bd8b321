"""Commands to a running QEMU, over its QMP socket."""

import json
import socket
import time

import host

PATIENCE = 30


class Qmp:
    """A connection to the socket that `Settings.qmp` names. One client at a time."""

    def __init__(self, path, alive=lambda: True):
        """Waits until QEMU has made the socket, as long as it is `alive`."""
        self._socket = self._connect(str(path), alive)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._lines.readline()  # the greeting
        self.run("qmp_capabilities")

    @staticmethod
    def _connect(path, alive):
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(PATIENCE)
            try:
                connection.connect(path)
                return connection
            except OSError as error:
                connection.close()
                if not alive() or time.monotonic() > deadline:
                    raise host.Problem(f"no QMP socket at {path}: {error}") from error
                time.sleep(0.02)

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
