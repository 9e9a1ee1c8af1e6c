"""How the shipped model was made: the emoji data set, its captions, recoloured copies, and the judge of the results."""
