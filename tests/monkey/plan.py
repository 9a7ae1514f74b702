"""What happens when: all is drawn from one random.Random(seed) before anything begins, so a seed is a plan."""

import random
from dataclasses import dataclass, field

PLACES = 4  # workers that are always there
CLIENTS = 2
FAULTS_EVERY = 1.3  # seconds, on average
FLOWS_EVERY = 1.1  # of each client

_SHORT, _LONG = (0.2, 1.2), (2.5, 6.0)  # seconds: within a lease, and long past it

# fault -> (weight, who it is done to)
FAULTS = {
    "kill parent": (6, "worker"),
    "kill stable": (5, "worker"),
    "kill horse": (6, "worker"),
    "kill tree": (5, "worker"),
    "stop parent": (6, "worker"),
    "stop all": (5, "worker"),
    "term": (5, "worker"),
    "burst": (3, "worker"),
    "join": (3, "worker"),
    "pause server": (5, "server"),
    "kill server": (4, "server"),
    "kill links": (6, "server"),
    "flush scripts": (4, "server"),
    "squeeze": (3, "server"),
    "suspend": (2, "server"),
    "cut": (4, "line"),
    "lose": (8, "line"),
    "delay": (4, "line"),
    "silence": (4, "line"),
    "kill client": (4, "client"),
}
FLOWS = {
    "map": 22,
    "single": 14,
    "retry": 7,
    "mend": 8,
    "then": 6,
    "depends": 7,
    "cancel": 9,
    "later": 7,
    "repeat": 3,
    "limit": 4,
    "named": 6,
    "told": 6,
    "stream": 3,
}
POISON_EVERY = 45.0
VERBS = ("claim", "settle", "renew", "submit", "promote", "retry", "cancel", "release", "join", "save")


@dataclass(order=True)
class Event:
    """At `at` seconds: `who` (worker 2, server, line 0, client 1) suffers or does `what`."""

    at: float
    who: str
    number: int
    what: str
    facts: dict = field(compare=False)

    def __str__(self):
        facts = " ".join(f"{key}={value}" for key, value in self.facts.items() if key not in {"seed", "draw"})
        return f"{self.who} {self.number}: {self.what} {facts}".rstrip()


def draw(seed, seconds):
    """All events, in the order of their times."""
    dice = random.Random(seed)
    events = _faults(dice, seconds)
    numbers = iter(range(1, 1_000_000))
    for client in range(CLIENTS):
        events += _flows(dice, seconds, client, numbers)
    return sorted(events)


def _times(dice, seconds, every, begin=1.0):
    at = begin
    while (at := at + dice.expovariate(1 / every)) < seconds:
        yield round(at, 2)


def _faults(dice, seconds):
    events = []
    for at in _times(dice, seconds, FAULTS_EVERY, 2.0):
        what = dice.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
        who = FAULTS[what][1]
        number = {"worker": dice.randrange(PLACES), "server": 0, "line": dice.randrange(3), "client": 1}[who]
        number = dice.randrange(CLIENTS) if who == "client" else number
        facts = {"draw": dice.random(), "back": round(dice.uniform(0.05, 2.0), 2)}
        if what in {"stop parent", "stop all", "pause server"}:
            facts["back"] = round(dice.uniform(*(_SHORT if dice.random() < 0.5 else _LONG)), 2)
        if what == "lose":
            facts |= {"verb": dice.choice(VERBS), "times": dice.choice((1, 1, 3, 6))}
        if what == "delay":
            facts["by"] = round(dice.uniform(0.02, 0.6), 2)
        if what == "silence":
            facts["back"] = round(dice.uniform(0.3, 7.0), 2)
        events.append(Event(at, who, number, what, facts))
    return events


def _flows(dice, seconds, client, numbers):
    events, poison = [], dice.uniform(5, POISON_EVERY)
    for at in _times(dice, seconds, FLOWS_EVERY):
        what = dice.choices(list(FLOWS), list(FLOWS.values()))[0]
        flow, seed = next(numbers), dice.randrange(1 << 30)
        events.append(Event(at, "client", client, "submit", {"flow": flow, "kind": what, "seed": seed}))
        if what == "cancel":
            when = round(at + dice.uniform(0.1, 3.0), 2)
            how = dice.choice(("batch", "waiting", "rows", "job"))
            events.append(Event(when, "client", client, "cancel", {"flow": flow, "how": how}))
        if what == "named" and dice.random() < 0.6:
            when = round(at + dice.uniform(0.5, 4.0), 2)
            events.append(Event(when, "client", client, "grow", {"flow": flow, "more": dice.randrange(1, 20)}))
        if at > poison:
            poison = at + 2 * POISON_EVERY
            facts = {"flow": next(numbers), "kind": "poison", "seed": seed}
            events.append(Event(at, "client", client, "submit", facts))
    return [event for event in events if event.at < seconds]
