"""How results are shown: console and JSON."""
