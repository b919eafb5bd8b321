"""Builds the programs of this repository with cargo and says where they are."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import host

CARGO_NEEDED = (1, 95)
STATIC = ["--", "-Ctarget-feature=+crt-static", "-Cstrip=symbols"]
GET_CARGO = "Debian 12's own is too old; https://rustup.rs installs a current one"


def _cargo():
    """The path of a cargo that is new enough: on PATH, or where rustup puts it."""
    home = os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo"
    rustup = pathlib.Path(home, "bin/cargo")
    cargo = shutil.which("cargo") or (str(rustup) if os.access(rustup, os.X_OK) else None)
    wanted = ".".join(map(str, CARGO_NEEDED))
    if cargo is None:
        raise host.Problem(f"cargo {wanted} or newer is needed and there is none; {GET_CARGO}",
                           host.EXIT_MISSING)
    said = host.run(cargo, "--version", cwd=host.REPOSITORY)
    version = re.match(r"cargo (\d+)\.(\d+)", said)
    if not version or tuple(map(int, version.groups())) < CARGO_NEEDED:
        raise host.Problem(f"cargo {wanted} or newer is needed and {cargo} is `{said.strip()}`; "
                           f"{GET_CARGO}", host.EXIT_MISSING)
    return cargo


def switch():
    """Builds the switch and returns its path."""
    return program("ringswitch", "ringswitch")


def program(package, name, kind="bin", static=False):
    """Builds a package's program (`kind`: bin or bench), optimised, and returns its path; cargo's
    progress goes to stderr. `static`: without shared libraries, for machines that have none.
    """
    host.need(["cc"])
    cargo = _cargo()
    # rustup's directory holds rustc too, which cargo looks for on PATH.
    path = f"{os.environ['PATH']}:{pathlib.Path(cargo).parent}"
    command = [cargo, "rustc" if static else "build", "--release", "--locked", "--package", package,
               f"--{kind}", name, "--message-format=json-render-diagnostics", *(STATIC if static else [])]
    host.say(f"building {name}")
    with subprocess.Popen(command, cwd=host.REPOSITORY, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, env=dict(os.environ, PATH=path)) as building:
        try:
            messages, _ = building.communicate()
        except BaseException:
            building.terminate()
            raise
    if building.returncode != 0:
        raise host.Problem(f"`{' '.join(command)}` failed with exit code {building.returncode}")
    for line in messages.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    raise host.Problem(f"cargo built no program named {name}")
