"""Comparing models: the same prompts and seeds by each of them, on one page to look at and vote on.

models.py   what is compared, and its settings
record.py   the folder of a comparison: its plan, the images and what sampled them
run.py      one process per model; images made elsewhere
page.py     the HTML page, from page.html, page.css and page.js
"""
