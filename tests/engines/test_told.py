"""What an engine's log has told, line by line."""

from pathlib import Path

from tandem.engines.footprints import Seen
from tandem.engines.phases import STARTED
from tandem.engines.told import Told, last_line
from tandem.fleet import State

RECORDED = Path(__file__).parent / "recorded"


def test_a_whole_start_is_told() -> None:
    """Of a recorded one: its last phase, the memory that it spoke of, and how many lines it had."""
    lines = (RECORDED / "start-generation-0.32.txt").read_text().splitlines()
    told = Told()
    for line in lines:
        told = told.after(line)
    assert told.lines == len(lines)
    assert told.phase.state is State.WARMING
    assert told.seen.tokens == 1_048_576


def test_a_remark_stays_when_other_lines_follow() -> None:
    told = Told().after("Auto-fit max_model_len: reduced from 8 to 4 to fit").after("nothing new")
    assert (told.lines, told.phase, told.seen) == (2, STARTED, Seen())
    assert told.remark == "context shortened from 8 to 4 tokens, as its memory allows"


def test_the_last_line_tells_something_and_no_secret() -> None:
    """Neither the arguments, of which some are secrets, nor a line without words; at most 300 characters of it."""
    assert last_line(["first", " loading ", "non-default args: {'api_key': 'sk-1'}", "====", ""]) == "loading"
    assert last_line(["x" * 400]) == "x" * 300
    assert last_line(["", "- -"]) == ""
