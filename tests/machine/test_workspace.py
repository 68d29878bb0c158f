"""What a compilation has not finished goes with it, whatever ends it, and nobody else's goes with it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.machine.workspace import workspace

HOLDS_ONE = """
import sys
from pathlib import Path
from outrider.machine.workspace import workspace
with workspace(Path(sys.argv[1])) as folder:
    (folder / "half.pt2").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(cache: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process with a workspace, and the workspace."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_is_moved_out_of_it_stays_and_the_rest_goes(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    with workspace(cache) as folder:
        (folder / "half.pt2").write_text("half")
        (folder / "deeper").mkdir()
        (folder / "whole.pt2").write_text("whole")
        (folder / "whole.pt2").replace(cache / "whole.pt2")
    assert [path.name for path in cache.iterdir()] == ["whole.pt2"]
    assert cache.stat().st_mode & 0o077 == 0


def test_an_error_takes_it_along(tmp_path: Path) -> None:
    def interrupted() -> None:
        with workspace(tmp_path) as folder:
            (folder / "half.pt2").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_the_killed_leave_goes_with_the_next_and_what_the_living_use_stays(tmp_path: Path) -> None:
    killed, left = holder(tmp_path)
    living, used = holder(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with workspace(tmp_path):
            assert not left.exists()
            assert (used / "half.pt2").exists()
    finally:
        living.communicate()
        killed.communicate()
    assert list(tmp_path.iterdir()) == []
