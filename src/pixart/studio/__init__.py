"""The studio: a web page for drawing."""
