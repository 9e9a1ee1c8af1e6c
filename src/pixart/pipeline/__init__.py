"""From a prompt to image files: requests, the four sampling operations, image metadata."""
