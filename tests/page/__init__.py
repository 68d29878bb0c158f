"""The live page: its files by HTTP, and what it shows in Chromium."""
