"""Who gets what memory and how many threads. Pure: what models need and what the machine has in, shares out.

An engine needs its weights, room for the activations of one step, CUDA graphs, and whatever CUDA and Python take; the
rest of its part is KV cache. The first start on a card is planned with estimates of all that, and vLLM measures; from
then on the plan has what was measured (:mod:`tandem.engines.footprints`), and tells the engine its size. The division
itself never uses what was measured where the estimates allow it, so that it is the same at each start.
"""

from collections.abc import Mapping

from tandem.engines.hardware import Hardware
from tandem.engines.planning.cards import on_cards, unseen
from tandem.engines.planning.changes import fitting
from tandem.engines.planning.needs import Lacking, Wanted, measured, needed
from tandem.engines.planning.ram import in_memory
from tandem.engines.planning.shares import Share
from tandem.errors import DoesNotFit


def plan(engines: Mapping[str, Wanted], hardware: Hardware) -> dict[str, Share]:
    """Divide the machine between ``engines``.

    Raises:
        DoesNotFit: they need more than there is; names settings with which they would fit.
    """
    try:
        return _divide(engines, hardware)
    except Lacking as lacking:
        changes = tuple(fitting(engines, hardware, lambda others: _fits(others, hardware)))
        mend = (
            "It fits with " + ", or ".join(map(str, changes))
            if changes
            else "No setting makes it fit: choose a smaller model or a quantized one, serve fewer engines, "
            "or end other programs"
        )
        raise DoesNotFit(str(lacking), mend, changes) from lacking


def _fits(engines: Mapping[str, Wanted], hardware: Hardware) -> bool:
    try:
        _divide(engines, hardware)
    except Lacking:
        return False
    return True


def _divide(engines: Mapping[str, Wanted], hardware: Hardware) -> dict[str, Share]:
    if not hardware.gpu:
        divide = in_memory
    elif hardware.cards[0].total:
        divide = on_cards
    else:
        return unseen(engines)
    estimated = [needed(name, wanted, hardware) for name, wanted in engines.items()]
    judged = [measured(need) for need in estimated]
    try:
        return divide(estimated, judged, hardware)
    except Lacking:
        if estimated == judged:
            raise
        return divide(judged, judged, hardware)
