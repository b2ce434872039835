"""The client's steps as log lines: a sentence with its figures, and the same figures as fields of the record."""

import dataclasses
import logging

from tandem.telemetry.timeline import Step

_log = logging.getLogger("tandem.client")
# What failed is raised, too, and whoever catches it decides how loud it is.
_LEVELS = {"started": logging.DEBUG, "retried": logging.WARNING, "finished": logging.DEBUG, "failed": logging.INFO}


class Lines:
    """A sink that logs each step to ``tandem.client``: what is sent again at warning, failed at info, else at debug.

    No line holds a text. Formatters for structured logs find a step's fields on the record as ``record.step``, a dict.
    """

    def __call__(self, step: Step) -> None:
        """Log it, where anybody listens at its level."""
        level = _LEVELS[step.name]
        if _log.isEnabledFor(level):
            _log.log(level, "%s", _line(step), extra={"step": dataclasses.asdict(step)})


def _line(step: Step) -> str:
    parts = [f"batch {step.batch} {step.name}: model={step.model} mode={step.mode} texts={step.n_texts}"]
    if step.name != "started":
        parts.append(f"seconds={step.seconds:.3f} attempt={step.attempt}")
    if step.name == "finished":
        parts.append(f"dim={step.dim} tokens={step.tokens}")
    if step.name == "retried":
        parts.append(f"pause={step.pause:.3f}")
    if step.outcome:
        parts.append(f"outcome={step.outcome}")
    if step.error:
        parts.append(f"error={step.error!r}")
    return " ".join(parts)
