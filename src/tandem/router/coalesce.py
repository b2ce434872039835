"""Many callers' texts, packed into few batches, and their vectors handed back. Pure: nothing is sent from here.

Natural batching: while as many batches are with an engine as it can use, what comes gathers, and leaves packed when one
of them is answered. Callers take turns: a large request is cut, and small ones go between
its pieces. A text that several ask for at once is asked for once.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Input = str | tuple[int, ...]


class Item:
    """One text, or one list of token ids, and everybody who wants its vector.

    Attributes:
        tokens: how many it has.
        places: who wants it, and as which of their inputs.
    """

    __slots__ = ("input", "places", "tokens")

    def __init__(self, input: Input, tokens: int) -> None:  # noqa: A002 - the API's name
        self.input = input
        self.tokens = tokens
        self.places: list[tuple[Job, int]] = []


class Job:
    """One caller's request.

    Attributes:
        vectors: what has come, by index: little-endian float32.
        left: how many have not come.
        tokens: of all its inputs, each counted as often as it occurs.
        began: when the first of its inputs was sent; 0 before.
        headers: for the engine: the caller's trace context.
    """

    __slots__ = ("began", "headers", "items", "left", "tokens", "vectors")

    def __init__(self) -> None:
        self.began = 0.0
        self.headers: Mapping[str, str] = {}
        self.items: list[Item] = []
        self.vectors: list[bytes] = []
        self.left = 0
        self.tokens = 0

    def give(self, index: int, vector: bytes) -> bool:
        """One vector; whether it was the last that was missing."""
        self.vectors[index] = vector
        self.left -= 1
        return not self.left


@dataclass(frozen=True)
class Batch(Generic[K]):
    """What is asked of the engine at once."""

    key: K
    items: tuple[Item, ...]

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for any of it."""
        return any(item.places for item in self.items)

    @property
    def tokens(self) -> int:
        return sum(item.tokens for item in self.items)

    def halves(self) -> tuple["Batch[K]", "Batch[K]"]:
        """The same in two, to find the one that the engine refuses."""
        middle = len(self.items) // 2
        return Batch(self.key, self.items[:middle]), Batch(self.key, self.items[middle:])


@dataclass
class _Group:
    """Requests that may share a batch: of one kind of input, with the same parameters.

    Attributes:
        turns: those that still have items to send, in the order in which it is their turn.
        rest: for each of them, those items.
        known: items by what they are, as long as they may be joined: until their vector has come.
    """

    turns: deque[Job] = field(default_factory=deque)
    rest: dict[Job, deque[Item]] = field(default_factory=dict)
    known: dict[Input, Item] = field(default_factory=dict)


class Queue(Generic[K]):
    """What waits for one engine.

    Attributes:
        tokens: how many all items that wait have together.
    """

    def __init__(self) -> None:
        self._groups: dict[K, _Group] = {}
        self._turns: deque[K] = deque()  # groups that have something to send
        self._size = 0
        self.tokens = 0

    def add(self, key: K, inputs: Sequence[Input], tokens: Sequence[int]) -> Job:
        """A request; ``key`` tells with which others it may share a batch."""
        group = self._groups.setdefault(key, _Group())
        job = Job()
        job.vectors = [b""] * len(inputs)
        job.left = len(inputs)
        job.tokens = sum(tokens)
        mine: deque[Item] = deque()
        for index, (text, count) in enumerate(zip(inputs, tokens, strict=True)):
            item = group.known.get(text)
            if item is None:
                item = group.known[text] = Item(text, count)
                job.items.append(item)
                mine.append(item)
                self._size += 1
                self.tokens += count
            else:
                item.tokens = item.tokens or count  # whoever came first has not counted it
                if not item.places or item.places[-1][0] is not job:
                    job.items.append(item)
            item.places.append((job, index))
        if mine:
            group.rest[job] = mine
            group.turns.append(job)
            if len(group.turns) == 1:
                self._turns.append(key)
        return job

    def drop(self, job: Job) -> None:
        """Its caller has gone: what nobody else wants, and was not sent, is not sent."""
        for item in job.items:
            item.places = [place for place in item.places if place[0] is not job]

    def forget(self, batch: Batch[K]) -> None:
        """``batch`` is broken off: whoever asks for its items from now on must have them asked for again."""
        if (group := self._groups.get(batch.key)) is None:
            return
        for item in batch.items:
            if group.known.get(item.input) is item:
                del group.known[item.input]
        self._forget(batch.key)

    @property
    def jobs(self) -> int:
        """How many requests have something that was not sent yet."""
        return sum(len(group.rest) for group in self._groups.values())

    def next(self, most: int, budget: int) -> Batch[K] | None:
        """The next batch: at most ``most`` items and ``budget`` tokens, but one item in any case; None for nothing."""
        while self._turns:
            key = self._turns[0]
            group = self._groups[key]
            items = self._take(group, most, budget)
            self._turns.popleft()
            if group.turns:
                self._turns.append(key)
            if items:
                return Batch(key, tuple(items))
            self._forget(key)
        return None

    def done(self, key: K, item: Item) -> Iterator[tuple[Job, int]]:
        """``item``'s vector, or its refusal, has come: whom to tell, and as which of their inputs."""
        if (group := self._groups.get(key)) is not None and group.known.get(item.input) is item:
            del group.known[item.input]
        places, item.places = item.places, []
        self._forget(key)
        return iter(places)

    def __len__(self) -> int:
        """How many items wait."""
        return self._size

    def _pop(self, rest: deque[Item]) -> Item:
        item = rest.popleft()
        self._size -= 1
        self.tokens -= item.tokens
        return item

    def _take(self, group: _Group, most: int, budget: int) -> list[Item]:
        """From each in turn one item, round and round, while there is room."""
        items: list[Item] = []
        left = budget
        while group.turns and len(items) < most:
            job = group.turns[0]
            rest = group.rest[job]
            while rest and not rest[0].places:  # nobody wants it any more
                item = self._pop(rest)
                if group.known.get(item.input) is item:
                    del group.known[item.input]
            if rest:
                if items and rest[0].tokens > left:
                    break
                item = self._pop(rest)
                left -= item.tokens
                items.append(item)
            group.turns.popleft()
            if rest:
                group.turns.append(job)
            else:
                del group.rest[job]
        return items

    def _forget(self, key: K) -> None:
        group = self._groups.get(key)
        if group is not None and not group.turns and not group.known:
            del self._groups[key]
