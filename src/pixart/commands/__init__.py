"""The commands: each module parses its options, calls the library and prints."""
