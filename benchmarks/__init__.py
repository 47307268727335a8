"""One command each; every one prints a table and exits non-zero when a target is missed."""
