"""Methods: what is trained, what it costs, and how it encodes and edits."""
