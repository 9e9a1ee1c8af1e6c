"""Captioning and extraction past one machine, as Ray Data pipelines over local or cloud paths."""
