"""One file for each way in which people lay out pictures and captions."""
