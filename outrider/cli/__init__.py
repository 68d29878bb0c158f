"""The command line: `outrider up`, `outrider generate`, `outrider run`."""
