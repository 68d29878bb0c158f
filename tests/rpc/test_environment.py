"""gRPC's environment is set before gRPC is imported, and the installed gRPC knows its experiments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from outrider.rpc.environment import GRPC_ENVIRONMENT

TELL_AT_IMPORT = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            names = ("GRPC_EXPERIMENTS", "GRPC_ENABLE_FORK_SUPPORT", "GRPC_SSL_CIPHER_SUITES")
            print(*map(os.environ.get, names))

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""

USE_A_CHANNEL = "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if name not in GRPC_ENVIRONMENT}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=without | environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "program", ["coordinator.__main__", "draft_service.__main__", "verify_service.__main__", "outrider.cli.__main__"]
)
def test_every_program_sets_them_before_grpc_is_imported(program: str) -> None:
    assert run(TELL_AT_IMPORT, program).stdout.split() == [*GRPC_ENVIRONMENT.values()]


def test_what_the_user_has_set_stays() -> None:
    assert run(TELL_AT_IMPORT, "coordinator.__main__", GRPC_EXPERIMENTS="").stdout.split()[0] == "0"


def test_the_installed_grpc_knows_them() -> None:
    told = run(USE_A_CHANNEL, GRPC_EXPERIMENTS=GRPC_ENVIRONMENT["GRPC_EXPERIMENTS"] + ",-nonsense").stderr
    assert [line.rpartition(" ")[2] for line in told.splitlines() if "Unknown experiment" in line] == ["nonsense"]
