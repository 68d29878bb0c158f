"""What holds for all tests: services that run in this process use gRPC as those with one of their own do."""

from __future__ import annotations

import os

from outrider.rpc.experiments import GRPC_EXPERIMENTS

os.environ.setdefault(*GRPC_EXPERIMENTS)  # before a test module imports grpc
