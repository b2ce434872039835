"""The folder of an unfinished run: one owner, and nothing in it counts that was not told of."""

from pathlib import Path

import pytest

from tandem.client import partial
from tandem.client.partial import Done
from tandem.errors import SetupError

HEADS = {"a": b"head", "b": b""}


def begun(out: Path) -> None:
    """A run that appended two steps' worth, and told of both."""
    with partial.claimed(out) as work:
        work.begin(b"job", HEADS)
        work.go_on()
        work.append({"a": b"1", "b": memoryview(b"22")}, Done(rows=1))
        work.append({"b": b"3"}, Done(rows=2))


def test_what_was_not_told_of_is_cut_off(tmp_path: Path) -> None:
    """The next run finds the files as the last step left them, and goes on there."""
    out = tmp_path / "out"
    begun(out)
    folder = tmp_path / "out.partial"
    with (folder / "b").open("ab") as file:
        file.write(b"junk")
    (folder / "done.new").write_bytes(b"{")
    with partial.claimed(out) as work:
        assert work.job() == b"job"
        assert (work.done.rows, work.done.sizes) == (2, {"a": 5, "b": 3})
        work.go_on()
        work.append({"b": b"4"}, Done(rows=3))
        assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"head1", b"2234")
        work.clear()
    assert not folder.exists()


def test_a_folder_without_a_job_holds_nothing_that_counts(tmp_path: Path) -> None:
    """As a run leaves it that was killed at its very beginning, or at its very end."""
    begun(tmp_path / "out")
    (tmp_path / "out.partial" / "job.json").unlink()
    with partial.claimed(tmp_path / "out") as work:
        assert (work.job(), work.done) == (None, Done())


def test_two_cannot_write_the_same_output(tmp_path: Path) -> None:
    """The second is told; once the first is done, its folder is gone and another may begin."""
    out = tmp_path / "out"
    with (
        partial.claimed(out),
        pytest.raises(SetupError, match=r"another process is writing .*out\. Wait for its end"),
        partial.claimed(out),
    ):
        pass
    with partial.claimed(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("a file")
    with (
        pytest.raises(SetupError, match=r"out\.partial cannot be used: File exists"),
        partial.claimed(tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("a", b"he", "a is shorter than it was"), ("done.json", b"{", "truncated"), ("b", None, "b: No such file")],
)
def test_a_damaged_folder_is_refused(name: str, content: bytes | None, why: str, tmp_path: Path) -> None:
    """With what is wrong, and what to do."""
    begun(tmp_path / "out")
    path = tmp_path / "out.partial" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        SetupError, match=rf"an interrupted run has left, is damaged: .*{why}.*\. Start over with --force"
    ):
        go_on(tmp_path / "out")


def go_on(out: Path) -> None:
    with partial.claimed(out) as work:
        work.job()
        work.go_on()
