"""One command each; each prints a table and exits non-zero when its target is missed."""
