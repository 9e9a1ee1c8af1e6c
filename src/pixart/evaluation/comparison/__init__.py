"""Several models, the same prompts and seeds: drawn each in a process of its own, shown on one page."""
