"""Processes of our services that begin as forks of one that has imported what they import."""
