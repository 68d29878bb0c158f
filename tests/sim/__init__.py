"""The whole core under random schedules."""
