"""The page that a browser finds at ``/``: what runs here, and where to read on."""

from collections.abc import Sequence
from html import escape

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>batchmux</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}}</style>
</head><body><h1>batchmux</h1>
<p>This server makes and edits images. Its state is <b>{state}</b>; its model is <b>{model}</b>.</p>
<ul><li><a href="/docs">Routes and their fields</a></li><li><a href="/health">State</a></li>
<li><a href="/metrics">Figures</a></li></ul>
<p>Models: {models}</p></body></html>
"""


def page(model: str, models: Sequence[str], state: str) -> str:
    return _PAGE.format(state=escape(state), model=escape(model), models=escape(", ".join(models)))
