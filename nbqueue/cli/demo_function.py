"""The function that the demo runs."""

from __future__ import annotations

import urllib.request


def count_words_at_url(url: str) -> int:
    """The number of words on a page."""
    with urllib.request.urlopen(url, timeout=30) as page:  # noqa: S310 - the user names the pages
        return len(page.read().split())
