"""One command each, printing a table and failing when a target is missed."""
