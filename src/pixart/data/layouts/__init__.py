"""The ways in which people lay out images and captions, over one walk, one kind of row and one pair of a row."""
