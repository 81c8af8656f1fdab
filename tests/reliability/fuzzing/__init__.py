"""The fuzzer: a small world of every kind of file, changes of its files, and what a case comes to."""
