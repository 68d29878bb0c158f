"""What the draft and the verify service share: settings, start-up, and the way from device thread to stream."""
