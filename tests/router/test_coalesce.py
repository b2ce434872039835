"""Whatever is asked, joined, left and broken off, each input of each request gets its own vector, once, in few batches.

The queue is driven as the embeddings route drives it, and without one: batches leave, come back in any order, are
refused in halves, or broken off when nobody wants them any more.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from tandem.router.coalesce import Batch, Input, Item, Job, Queue

MOST, BUDGET = 16, 1000


def add(queue: Queue[str], *inputs: Input, key: str = "k", tokens: int = 1) -> Job:
    """A request for ``inputs``, each of so many tokens."""
    return queue.add(key, inputs, [tokens] * len(inputs))


def take(queue: Queue[str], most: int = MOST, budget: int = BUDGET) -> list[Input]:
    """What the next batch asks for; empty when there is none."""
    batch = queue.next(most, budget)
    return [] if batch is None else asked(batch.items)


def asked(items: Iterable[Item]) -> list[Input]:
    return [item.input for item in items]


def answer(queue: Queue[str], batch: Batch[str]) -> None:
    """Each vector is its text in capitals."""
    for item in batch.items:
        for job, index in queue.done(batch.key, item):
            job.give(index, str(item.input).upper())


def following(queue: Queue[str]) -> Batch[str]:
    """The next batch, which there is."""
    batch = queue.next(MOST, BUDGET)
    assert batch is not None
    return batch


def empty(queue: Queue[str]) -> bool:
    """Whether nothing is kept of anything that was ever asked."""
    return not (queue._groups or queue._turns or queue.jobs or len(queue))


def test_an_empty_queue_has_nothing_to_send() -> None:
    queue: Queue[str] = Queue()
    assert queue.next(MOST, BUDGET) is None
    assert empty(queue)


def test_a_request_gets_its_vectors_in_its_order() -> None:
    """Whatever order they come in, and the last one says that it was the last."""
    queue: Queue[str] = Queue()
    job = add(queue, "a", "b", "c")
    batch = following(queue)
    ends = [
        who.give(index, str(item.input).upper())
        for item in reversed(batch.items)
        for who, index in queue.done("k", item)
    ]
    assert ends == [False, False, True]
    assert (job.vectors, job.left) == (["A", "B", "C"], 0)
    assert empty(queue)


def test_tokens_are_counted_as_often_as_a_text_occurs() -> None:
    """What a caller is told to have used does not depend on who else asked, or on repetitions."""
    queue: Queue[str] = Queue()
    first = queue.add("k", ["a", "b", "a"], [2, 3, 2])
    second = queue.add("k", ["a"], [2])
    assert (first.tokens, second.tokens) == (7, 2)
    assert following(queue).tokens == 5


def test_a_text_that_is_repeated_in_a_request_is_asked_for_once() -> None:
    queue: Queue[str] = Queue()
    job = add(queue, "a", "b", "a", "a", "b")
    batch = following(queue)
    assert asked(batch.items) == ["a", "b"]
    answer(queue, batch)
    assert (job.vectors, job.left) == (["A", "B", "A", "A", "B"], 0)


@pytest.mark.parametrize("under_way", [False, True])
def test_a_text_that_several_want_is_asked_for_once(under_way: bool) -> None:
    """While it waits, and while it is with the engine."""
    queue: Queue[str] = Queue()
    first = add(queue, "a", "b")
    batch = following(queue) if under_way else None
    second = add(queue, "b", "a", "b")
    batch = batch or following(queue)
    assert asked(batch.items) == ["a", "b"]
    assert queue.next(MOST, BUDGET) is None
    answer(queue, batch)
    assert (first.vectors, second.vectors) == (["A", "B"], ["B", "A", "B"])
    assert empty(queue)


def test_a_text_whose_vector_has_come_is_asked_for_again() -> None:
    """Nothing is kept for later: this is no cache."""
    queue: Queue[str] = Queue()
    add(queue, "a")
    answer(queue, following(queue))
    add(queue, "a")
    assert take(queue) == ["a"]


def test_the_same_text_under_other_parameters_is_another_text() -> None:
    queue: Queue[str] = Queue()
    one, other = add(queue, "a", key="x"), add(queue, "a", key="y")
    first, second = following(queue), following(queue)
    assert (first.key, second.key) == ("x", "y")
    answer(queue, second)
    assert (one.left, other.left) == (1, 0)
    answer(queue, first)
    assert one.left == 0
    assert empty(queue)


def test_token_ids_are_inputs_as_texts_are() -> None:
    queue: Queue[str] = Queue()
    add(queue, (1, 2), (3,), (1, 2))
    assert take(queue) == [(1, 2), (3,)]


def test_a_batch_has_at_most_so_many_items() -> None:
    queue: Queue[str] = Queue()
    add(queue, *map(str, range(40)))
    assert [len(take(queue)) for _ in range(4)] == [16, 16, 8, 0]


def test_a_batch_has_at_most_so_many_tokens() -> None:
    """What does not fit any more is the first of the next batch."""
    queue: Queue[str] = Queue()
    queue.add("k", ["a", "b", "c", "d"], [400, 600, 1, 999])
    assert [take(queue) for _ in range(3)] == [["a", "b"], ["c", "d"], []]


@pytest.mark.parametrize("budget", [0, 1, 499])
def test_an_item_beyond_the_budget_goes_alone(budget: int) -> None:
    """Or it would never go."""
    queue: Queue[str] = Queue()
    add(queue, "a", "b", tokens=500)
    assert [take(queue, MOST, budget) for _ in range(3)] == [["a"], ["b"], []]


def test_one_text_goes_between_the_pieces_of_many() -> None:
    """It leaves in the very next batch, although 2,048 were there before it."""
    queue: Queue[str] = Queue()
    add(queue, *map(str, range(2048)))
    take(queue)
    add(queue, "mine")
    assert "mine" in take(queue)


def test_one_text_with_parameters_of_its_own_waits_for_one_batch() -> None:
    queue: Queue[str] = Queue()
    add(queue, *map(str, range(2048)), key="x")
    take(queue)
    add(queue, "mine", key="y")
    assert "mine" in [*take(queue), *take(queue)]


def test_large_requests_share_a_batch_evenly() -> None:
    queue: Queue[str] = Queue()
    for name in "abcd":
        add(queue, *(f"{name}{n}" for n in range(100)))
    for _ in range(10):
        batch = take(queue)
        assert {name: sum(str(each).startswith(name) for each in batch) for name in "abcd"} == dict.fromkeys("abcd", 4)


def test_among_equals_who_comes_first_is_served_first() -> None:
    queue: Queue[str] = Queue()
    names = [str(n) for n in range(50)]
    for name in names:
        add(queue, name)
    assert [each for _ in range(4) for each in take(queue)] == names


def test_kinds_of_requests_take_turns() -> None:
    """However much there is of one."""
    queue: Queue[str] = Queue()
    for key in "xyz":
        add(queue, *map(str, range(48)), key=key)
    assert "".join(following(queue).key for _ in range(9)) == "xyzxyzxyz"


def test_what_only_one_who_left_wanted_is_not_sent() -> None:
    queue: Queue[str] = Queue()
    gone = add(queue, "a", "b", "c")
    stays = add(queue, "b")
    queue.drop(gone)
    batch = following(queue)
    assert asked(batch.items) == ["b"]
    assert queue.next(MOST, BUDGET) is None
    answer(queue, batch)
    assert (stays.vectors, gone.vectors) == (["B"], [b"", b"", b""])
    assert empty(queue)


def test_what_nobody_wanted_any_more_can_be_wanted_again() -> None:
    """By somebody who asks before it would have been its turn."""
    queue: Queue[str] = Queue()
    queue.drop(add(queue, "a", "b"))
    again = add(queue, "b")
    batch = following(queue)
    assert asked(batch.items) == ["b"]
    answer(queue, batch)
    assert again.vectors == ["B"]
    assert queue.next(MOST, BUDGET) is None
    assert empty(queue)


def test_after_all_have_left_nothing_is_sent_and_nothing_kept() -> None:
    queue: Queue[str] = Queue()
    for job in [add(queue, "a", "b", key=key) for key in "xyzx"]:
        queue.drop(job)
    assert queue.next(MOST, BUDGET) is None
    assert empty(queue)


def test_a_batch_is_wanted_as_long_as_one_caller_waits_for_one_of_its_items() -> None:
    queue: Queue[str] = Queue()
    first, second = add(queue, "a", "b"), add(queue, "b", "c")
    batch = following(queue)
    queue.drop(first)
    assert batch.wanted
    queue.drop(second)
    assert not batch.wanted
    later = add(queue, "c")
    assert batch.wanted
    answer(queue, batch)
    assert later.vectors == ["C"]
    assert not batch.wanted
    assert empty(queue)


def test_what_was_broken_off_is_asked_for_again() -> None:
    """Whoever joins later does not wait for an answer that is not going to come."""
    queue: Queue[str] = Queue()
    gone = add(queue, "a")
    batch = following(queue)
    queue.drop(gone)
    queue.forget(batch)
    assert empty(queue)
    later = add(queue, "a")
    again = following(queue)
    assert asked(again.items) == ["a"]
    answer(queue, batch)  # news of the first one are news to nobody
    assert later.left == 1
    answer(queue, again)
    assert later.vectors == ["A"]
    assert empty(queue)


def test_a_batch_is_forgotten_as_often_as_somebody_says_so() -> None:
    """Several callers may leave before the batch that all of them wanted is gone."""
    queue: Queue[str] = Queue()
    queue.drop(add(queue, "a"))
    job = add(queue, "b")
    batch = following(queue)
    queue.drop(job)
    queue.forget(batch)
    queue.forget(batch)
    assert empty(queue)


def test_a_batch_that_is_done_can_be_forgotten() -> None:
    """Its task may not have ended when the last of its callers goes."""
    queue: Queue[str] = Queue()
    add(queue, "a")
    batch = following(queue)
    answer(queue, batch)
    queue.forget(batch)
    assert empty(queue)


@pytest.mark.parametrize("number", [2, 3, 7, 16])
def test_halves_are_all_of_a_batch_and_nothing_twice(number: int) -> None:
    """In order, and neither is empty: what is refused again and again comes down to one."""
    queue: Queue[str] = Queue()
    add(queue, *map(str, range(number)))
    batch = following(queue)
    first, second = batch.halves()
    assert first.items + second.items == batch.items
    assert abs(len(first.items) - len(second.items)) <= 1
    assert first.items
    assert second.items
    assert first.key == second.key == batch.key


def test_what_waits_is_counted() -> None:
    """Items, and requests that have some: not what was sent, and not what another one sends anyway."""
    queue: Queue[str] = Queue()
    add(queue, *map(str, range(20)), key="x")
    add(queue, "a", "0", key="y")
    add(queue, "a", "a", key="y")
    assert (len(queue), queue.jobs) == (22, 2)
    following(queue)
    assert (len(queue), queue.jobs) == (6, 2)
    following(queue)
    assert (len(queue), queue.jobs) == (4, 1)
    following(queue)
    assert (len(queue), queue.jobs) == (0, 0)


@dataclass
class Caller:
    """What one of them asked for, and what has come."""

    key: str
    inputs: Sequence[Input]
    job: Job
    given: dict[int, str] = field(default_factory=dict)
    left: bool = False


class Callers:
    """Many callers and an engine, who do as chance has it; looks at each step at what must hold."""

    KEYS = "xyz"
    TEXTS = tuple(f"t{n}" for n in range(30))

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - seeded, and guards nothing
        self.queue: Queue[str] = Queue()
        self.callers: dict[Job, Caller] = {}
        self.with_engine: list[Batch[str]] = []
        self.vectors = 0

    def ask(self) -> None:
        key = self.chance.choice(self.KEYS)
        number = self.chance.choice([1, 1, 1, 2, 5, 40])
        inputs = self.chance.choices(self.TEXTS, k=number)
        job = self.queue.add(key, inputs, [self.tokens(text) for text in inputs])
        assert job.tokens == sum(map(self.tokens, inputs))
        self.callers[job] = Caller(key, inputs, job)

    @staticmethod
    def tokens(text: str) -> int:
        return 1 + int(text[1:]) ** 2 % 50

    def send(self) -> None:
        most, budget = self.chance.choice([1, 3, 16]), self.chance.choice([0, 10, 60, 10_000])
        batch = self.queue.next(most, budget)
        if batch is None:
            return
        texts = asked(batch.items)
        assert 1 <= len(texts) <= most
        assert len(set(texts)) == len(texts)
        assert len(texts) == 1 or batch.tokens <= budget
        assert all(item.places for item in batch.items)
        away = {(each.key, item.input) for each in self.with_engine for item in each.items}
        assert not away & {(batch.key, text) for text in texts}
        self.with_engine.append(batch)

    def answer(self) -> None:
        if self.with_engine:
            self.return_(self.with_engine.pop(self.chance.randrange(len(self.with_engine))))

    def return_(self, batch: Batch[str]) -> None:
        if len(batch.items) > 1 and self.chance.random() < 0.3:
            for half in batch.halves():
                self.return_(half)
            return
        for item in batch.items:
            self.vectors += 1
            for job, index in self.queue.done(batch.key, item):
                caller = self.callers[job]
                assert not caller.left
                assert (caller.key, caller.inputs[index]) == (batch.key, item.input)
                assert index not in caller.given
                caller.given[index] = str(self.vectors)
                assert job.give(index, str(self.vectors)) == (len(caller.given) == len(caller.inputs))

    def leave(self) -> None:
        waiting = [caller for caller in self.callers.values() if caller.job.left and not caller.left]
        if not waiting:
            return
        caller = self.chance.choice(waiting)
        caller.left = True
        self.queue.drop(caller.job)
        for batch in [batch for batch in self.with_engine if not batch.wanted]:
            self.with_engine.remove(batch)
            self.queue.forget(batch)

    def live(self, steps: int) -> None:
        acts = [self.ask, self.send, self.answer, self.leave]
        for _ in range(steps):
            self.chance.choices(acts, [3, 3, 2, 1])[0]()
        while len(self.queue) or self.with_engine:
            self.send()
            self.answer()


@pytest.mark.parametrize("seed", range(60))
def test_everybody_who_stays_gets_all_of_theirs_and_nothing_is_left(seed: int) -> None:
    """Random requests, batches, answers in any order and halves, and callers who leave."""
    callers = Callers(seed)
    callers.live(300)
    for caller in callers.callers.values():
        if not caller.left:
            assert caller.job.left == 0
            assert caller.job.vectors == [caller.given[index] for index in range(len(caller.inputs))]
    assert empty(callers.queue)
