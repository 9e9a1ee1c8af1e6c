"""Captions for the images of a data set, from a vision-language model or from what the data set says of them."""
