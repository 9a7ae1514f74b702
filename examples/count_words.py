"""Count the words of many pages, as a script. With no URLs it counts those of a few small pages that it writes itself.

python examples/count_words.py https://www.python.org https://pandas.pydata.org
"""

import sys
import tempfile
import urllib.request
from pathlib import Path

import nbqueue


def count_words_at_url(url):
    """The number of words on a page."""
    with urllib.request.urlopen(url, timeout=30) as page:
        return len(page.read().split())


def some_pages(folder):
    """Twelve small pages as file:// URLs, and one that is not there."""
    for number in range(12):
        (folder / f"page-{number}.txt").write_text("word " * (number + 1) * 10)
    return [(folder / f"page-{number}.txt").as_uri() for number in range(13)]


def main():
    """Maps, waits, and shows the frame."""
    with tempfile.TemporaryDirectory() as folder:
        urls = sys.argv[1:] or some_pages(Path(folder))
        batch = nbqueue.map(count_words_at_url, urls)
        frame = batch.to_frame()
        print(frame[["result", "status", "error"]].to_string())
        print(batch.tally)


# A worker imports nothing from here, but a script that is imported should not start work.
if __name__ == "__main__":
    main()
