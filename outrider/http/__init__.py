"""HTTP shells: the server, and what any service answers a scraper and a probe."""
