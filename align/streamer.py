"""Printing an answer while it is generated, up to the stop string, which is never shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from transformers import PreTrainedTokenizerBase, TextStreamer


class AnswerStreamer(TextStreamer):
    """Writes words as they are finished; holds back an end of text that may turn out to begin a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], output: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stops = stops
        self._output = output
        self._held = ""
        self._started = self._stopped = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with the next piece of text."""
        self._held += text
        if not self._started:  # as the returned answer, the shown one has no blanks around it
            self._held = self._held.lstrip()
        places = [place for place in map(self._held.find, self._stops) if place >= 0]
        if places:
            self._held = self._held[: min(places)]
        if not self._stopped:
            kept = 0 if places or stream_end else self._possible_stop()
            shown = self._held[: len(self._held) - kept]
            trailing = len(shown) - len(shown.rstrip())
            shown, self._held = shown[: len(shown) - trailing], self._held[len(shown) - trailing :]
            self._started = self._started or bool(shown)
            self._output.write(shown)
        self._stopped = self._stopped or bool(places)
        if stream_end:
            self._output.write("\n")
        self._output.flush()

    def _possible_stop(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        beginnings = (stop[:length] for stop in self._stops for length in range(1, len(stop)))
        return max((len(beginning) for beginning in beginnings if self._held.endswith(beginning)), default=0)
