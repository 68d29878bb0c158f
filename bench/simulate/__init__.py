"""Draft and verify on a virtual clock."""
