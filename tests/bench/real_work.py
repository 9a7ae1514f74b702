"""Six pieces of real work, each as a notebook user would write it, beside joblib in one run, in turns.

    python tests/bench/real_work.py [--quick] [--rounds N] [NAME ...]

Needs the extra `bench`. Both have two processes (for the pages, eight: who waits for others says so), at the same nice
value. "first" is a cell that runs for the first time: nbqueue's worker is up but knows nothing of the function, joblib
has no processes yet. "second" is the same cell once more. Prints medians of N rounds in seconds; the goals are for
both. Exit code 1 when one is missed.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import nbqueue
from nbqueue.store import server

# ---------------------------------------------------------------- (a) pages


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href"]


def links(url):
    with urllib.request.urlopen(url) as page:
        parser = Links()
        parser.feed(page.read().decode())
    return len(parser.found)


def links_or_none(url):
    """With joblib one missing page would cost all others."""
    try:
        return links(url)
    except urllib.error.HTTPError:
        return None


class Site(BaseHTTPRequestHandler):
    """Every 50th page is slow, every 53rd is missing."""

    body = ("<html><body>" + "<p>text <a href='/x'>x</a></p>" * 300 + "</body></html>").encode()

    def do_GET(self):
        number = int(self.path[1:])
        time.sleep(0.3 if number % 50 == 0 else 0.01)
        if number % 53 == 7:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        """Says nothing."""


class LongQueue(ThreadingHTTPServer):
    request_queue_size = 100


class Pages:
    name, goal, slots = "2,000 pages", 1.0, 8

    def __init__(self, _folder, quick):
        words = [sys.executable, __file__, "--serve"]
        self._site = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        address = self._site.stdout.readline().strip()
        self.urls = [f"{address}/{number}" for number in range(400 if quick else 2_000)]

    def ours(self):
        found = nbqueue.map(links, self.urls).results(errors="return")
        return [None if isinstance(each, Exception) else each for each in found]

    def theirs(self):
        return Parallel(n_jobs=self.slots)(delayed(links_or_none)(url) for url in self.urls)

    def close(self):
        self._site.kill()
        self._site.wait()


# ---------------------------------------------------------------- (b), (c) a grid with scikit-learn


def score_inside(c, gamma, fold):
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, y = load_breast_cancer(return_X_y=True)
    train, test = list(StratifiedKFold(5).split(x, y))[fold]
    model = make_pipeline(StandardScaler(), SVC(C=c, gamma=gamma))
    return model.fit(x[train], y[train]).score(x[test], y[test])


def score(c, gamma, fold):
    x, y = load_breast_cancer(return_X_y=True)
    train, test = list(StratifiedKFold(5).split(x, y))[fold]
    model = make_pipeline(StandardScaler(), SVC(C=c, gamma=gamma))
    return model.fit(x[train], y[train]).score(x[test], y[test])


class Grid:
    name, goal, slots = "scikit-learn, imported at the top", 1.1, 2
    function = staticmethod(score)

    def __init__(self, _folder, quick):
        self.c = np.logspace(-2, 2, 4 if quick else 10).tolist()
        self.gamma = np.logspace(-4, -2, 3 if quick else 6).tolist()

    def ours(self):
        return nbqueue.grid(self.function, c=self.c, gamma=self.gamma, fold=range(5)).results()

    def theirs(self):
        return Parallel(n_jobs=2)(delayed(self.function)(*each) for each in product(self.c, self.gamma, range(5)))

    def close(self):
        """Has nothing open."""


class GridInside(Grid):
    name = "scikit-learn, imported inside"
    function = staticmethod(score_inside)


# ---------------------------------------------------------------- (d) Monte Carlo


def price(seed):
    rng = np.random.default_rng(seed)
    steps = rng.normal(0.0002, 0.01, (100, 252))
    return float(np.maximum(np.exp(steps.sum(axis=1)) - 1.05, 0).mean())


class MonteCarlo:
    name, goal, slots = "Monte Carlo, 5,000 seeds", 1.1, 2

    def __init__(self, _folder, quick):
        self.seeds = range(1_000 if quick else 5_000)

    def ours(self):
        return nbqueue.map(price, self.seeds).results()

    def theirs(self):
        return Parallel(n_jobs=2)(delayed(price)(seed) for seed in self.seeds)

    def close(self):
        """Has nothing open."""


# ---------------------------------------------------------------- (e) pictures


def thumbnail(path):
    with Image.open(path) as image:
        small = image.resize((320, 240))
    small.save(path.with_suffix(".small.png"))
    return small.size


class Pictures:
    name, goal, slots = "500 PNG files", 1.1, 2

    def __init__(self, folder, quick):
        rng = np.random.default_rng(0)
        base = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(base).resize((800, 600)).save(data, "png")
        self.paths = [folder / f"{number}.png" for number in range(100 if quick else 500)]
        for path in self.paths:
            path.write_bytes(data.getvalue())

    def ours(self):
        return nbqueue.map(thumbnail, self.paths).results()

    def theirs(self):
        return Parallel(n_jobs=2)(delayed(thumbnail)(path) for path in self.paths)

    def close(self):
        """Has nothing open."""


# ---------------------------------------------------------------- (f) split and apply


def describe(group):
    by_day = group.groupby("day")["value"].mean()
    return {"group": int(group["group"].iloc[0]), "mean": float(by_day.mean()), "top": float(by_day.max())}


class SplitApply:
    name, goal, slots = "split-apply, 200 groups", 1.5, 2

    def __init__(self, _folder, quick):
        n = 200_000 if quick else 1_000_000
        rng = np.random.default_rng(0)
        facts = {"group": rng.integers(0, 200, n), "day": rng.integers(0, 365, n), "value": rng.normal(size=n)}
        self.frame = pd.DataFrame(facts)

    def ours(self):
        return nbqueue.map(describe, [group for _, group in self.frame.groupby("group")]).results()

    def theirs(self):
        return Parallel(n_jobs=2)(delayed(describe)(group) for _, group in self.frame.groupby("group"))

    def close(self):
        """Has nothing open."""


# ---------------------------------------------------------------- side by side

WORKS = {
    "pages": Pages,
    "inside": GridInside,
    "top": Grid,
    "montecarlo": MonteCarlo,
    "pictures": Pictures,
    "split": SplitApply,
}


@contextlib.contextmanager
def worker(url, slots):
    """A worker that is up, and has seen no function of ours."""
    words = [sys.executable, "-m", "nbqueue", "worker", "--quiet", "--slots", str(slots), "--url", url]
    process = subprocess.Popen(words)
    try:
        nbqueue.map("operator.pos", [1]).wait()
        yield
    finally:
        process.terminate()
        process.wait()


def timed(cell):
    began = time.perf_counter()
    found = cell()
    return time.perf_counter() - began, found


def measured(work, url):
    """(joblib's first, its second, our first, our second), in seconds."""
    get_reusable_executor(max_workers=1).shutdown(wait=True)
    theirs, expected = timed(work.theirs)
    again, _ = timed(work.theirs)
    get_reusable_executor(max_workers=1).shutdown(wait=True)
    with worker(url, work.slots):
        ours, found = timed(work.ours)
        ours_again, _ = timed(work.ours)
    assert found == expected
    return theirs, again, ours, ours_again


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("names", nargs="*", choices=[*WORKS, []])
    words = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory(prefix="nbq-") as home, contextlib.ExitStack() as stack:
        os.environ |= {"NBQUEUE_HOME": home, "NBQUEUE_PROGRESS": "0"}
        running = server.start(Path(home) / "server")
        stack.callback(server.stop, Path(home) / "server")
        nbqueue.connect(running.url)
        works = [WORKS[name](Path(home), words.quick) for name in words.names or WORKS]
        for work in works:
            stack.callback(work.close)
        rows = {work.name: [] for work in works}
        for _ in range(words.rounds):
            for work in works:
                rows[work.name].append(measured(work, running.url))
        print(f"{'seconds':34}{'first':>8}{'joblib':>8}{'ratio':>7}{'second':>9}{'joblib':>8}{'ratio':>7}{'goal':>6}")
        for work in works:
            theirs, again, ours, ours_again = map(statistics.median, zip(*rows[work.name], strict=True))
            ratios = ours / theirs, ours_again / again
            missed = missed or max(ratios) > work.goal
            first = f"{ours:8.2f}{theirs:8.2f}{ratios[0]:7.2f}"
            print(f"{work.name:34}{first}{ours_again:9.2f}{again:8.2f}{ratios[1]:7.2f}{work.goal:6.1f}")
    return int(missed)


def serve():
    site = LongQueue(("127.0.0.1", 0), Site)
    print(f"http://127.0.0.1:{site.server_address[1]}", flush=True)
    site.serve_forever()


if __name__ == "__main__":
    sys.exit(serve() if sys.argv[1:] == ["--serve"] else main())
