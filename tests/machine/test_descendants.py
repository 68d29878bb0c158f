"""A process that leaves takes along what it has started, wherever in the tree and in whichever session."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

TREE = """
import subprocess, sys
from outrider.machine.descendants import kill_descendants
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True)
print(child.stdout.readline().decode(), end="", flush=True)
sys.stdin.readline()
kill_descendants()
print(child.wait(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells who started whom")
def test_all_descendants_are_killed_and_nobody_else() -> None:
    with (
        subprocess.Popen(["sleep", "600"]) as stranger,
        subprocess.Popen([sys.executable, "-c", TREE], stdin=-1, stdout=-1, text=True) as parent,
    ):
        assert parent.stdout is not None
        grandchild = os.pidfd_open(int(parent.stdout.readline()))
        try:
            output, _ = parent.communicate("\n")
            assert int(output) == -signal.SIGKILL
            assert parent.returncode == 0
            assert select.select([grandchild], [], [])[0], "readable once the process has ended"
            assert stranger.poll() is None
        finally:
            os.close(grandchild)
            stranger.kill()
