"""Oracle languages: generators whose exact log-probability is known."""
