"""gRPC shells: the wire, statuses, streams, servers and channels. No torch, no policy."""
