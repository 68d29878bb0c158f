"""The command line: `outrider up`, `outrider generate`, `outrider explain`, `outrider run`."""
