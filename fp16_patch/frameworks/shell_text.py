# SPDX-License-Identifier: Apache-2.0
"""Read a shell command line or script into simple commands, as far as that needs no shell.

Quotes, comments, redirections, here-documents and ``"$@"`` are read as a shell does. Nothing is executed.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from fp16_patch.errors import Fp16PatchError

_FROM_A_SHELL = re.compile(r"\$\(|`|\$\w|\$[@*]|\$\{[A-Za-z_]\w*(:[-=+?\d]|[\[#%/@^,])|\$\{[!#@*\d]")
"""What only a shell can replace; ``${a.b}`` and ``${a:b}`` are Hydra's."""

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_ARGUMENTS = re.compile(r"\$(?:([@*])|\{([@*])(?::(\d+))?\})")
_HOME = re.compile(r"([A-Za-z_]\w*=)?~(/|$)")
_BRACES = re.compile(r"(?<!\$)\{[^{}]*(,|\.\.)[^{}]*\}")
_HIDDEN = "\0"


@dataclass(frozen=True)
class ShellWord:
    """A word: its parts, each with the quote around it (``""``, ``'"'``, or ``"'"`` for text that is literal)."""

    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The word without its quotes."""
        return "".join(text for text, _ in self.parts)

    @property
    def only_a_shell_can_tell(self) -> bool:
        """Return whether a shell would replace a part: variable, command, ``~``, braces, a pattern that files match."""
        if _FROM_A_SHELL.search("".join(_HIDDEN if quote == "'" else text for text, quote in self.parts)):
            return True
        bare = "".join(text if not quote else _HIDDEN for text, quote in self.parts)
        if _HOME.match(bare) or _BRACES.search(bare):
            return True
        pattern = "".join(glob.escape(text) if quote else text for text, quote in self.parts)
        return glob.has_magic(bare) and bool(glob.glob(pattern))

    @property
    def passes_arguments_on(self) -> bool:
        """Return whether the word is ``"$@"`` or the like."""
        return bool(_ARGUMENTS.fullmatch(self.text)) and all(quote != "'" for _, quote in self.parts)

    def with_arguments(self, arguments: Sequence[str]) -> list[ShellWord]:
        """Return the word, or the script's arguments in its place if it is ``"$@"`` or the like."""
        found = _ARGUMENTS.fullmatch(self.text) if self.passes_arguments_on else None
        if found is None:
            return [self]
        given = list(arguments)[max(0, int(found[3] or 1) - 1) :]
        joined = (found[1] or found[2]) == "*" and any(quote for _, quote in self.parts)
        return [ShellWord(((word, "'"),)) for word in ([" ".join(given)] if joined and given else given)]

    def with_variables(self, variables: Mapping[str, str]) -> ShellWord:
        """Return the word with the known variables replaced."""

        def value(found: re.Match[str]) -> str:
            return variables.get(found[1] or found[2], found[0])

        return ShellWord(
            tuple((text, quote) if quote == "'" else (_VARIABLE.sub(value, text), quote) for text, quote in self.parts)
        )


def simple_commands(text: str) -> list[list[ShellWord]]:
    """Return the words of each simple command: between ``;``, ``&``, ``|`` and ends of lines.

    Raises:
        Fp16PatchError: If a quote is not closed.
    """
    return _Reader(text.replace("\r\n", "\n")).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.commands: list[list[ShellWord]] = [[]]
        self.parts: list[tuple[str, str]] = []
        self.redirected = self.to_document = False
        self.documents: list[str] = []

    def read(self) -> list[list[ShellWord]]:
        while self.at < len(self.text):
            self._step()
        self._end_word()
        return [words for words in self.commands if words]

    def _step(self) -> None:
        text, at = self.text, self.at
        char = text[at]
        if char == "\\":
            if text[at + 1 : at + 2] not in ("\n", ""):
                self.parts.append((text[at + 1], "'"))
            self.at += 2
        elif char == "'":
            end = self._closing("'")
            self.parts.append((text[at + 1 : end], "'"))
            self.at = end + 1
        elif char == '"':
            self._double_quoted()
        elif char == "#" and not self.parts:
            self.at = end if (end := text.find("\n", at)) >= 0 else len(text)
        elif char in " \t\r":
            self._end_word()
            self.at += 1
        elif char in "<>" or text.startswith("&>", at):
            self._redirection()
        elif char in ";&|\n":
            self._end_word()
            self.commands.append([])
            self.at += 1
            if char == "\n":
                self._skip_documents()
        else:
            end = self._end_of_expansion()
            self.parts.append((text[at:end], ""))
            self.at = end

    def _end_word(self) -> None:
        if not self.parts:
            return
        runs = groupby(self.parts, itemgetter(1))
        word = ShellWord(tuple(("".join(text for text, _ in run), quote) for quote, run in runs))
        self.parts = []
        if self.redirected:
            self.documents += [word.text] if self.to_document else []
            self.redirected = False
        else:
            self.commands[-1].append(word)

    def _redirection(self) -> None:
        if "".join(text for text, _ in self.parts).isdigit():
            self.parts = []  # the 2 of 2>file
        self._end_word()
        operator = re.compile(r"&?[<>]+[&|-]?").match(self.text, self.at)
        assert operator is not None
        self.redirected, self.to_document = True, operator[0] in ("<<", "<<-")
        self.at = operator.end()

    def _skip_documents(self) -> None:
        for end in self.documents:
            while self.at < len(self.text):
                line, _, _ = self.text[self.at :].partition("\n")
                self.at += len(line) + 1
                if line.strip() == end:
                    break
        self.documents = []

    def _double_quoted(self) -> None:
        self.parts.append(("", '"'))
        self.at += 1
        while (char := self.text[self.at : self.at + 1]) != '"':
            if not char:
                raise _unclosed('"')
            following = self.text[self.at + 1 : self.at + 2]
            if char == "\\" and following in ("$", "`", '"', "\\", "\n"):
                self.parts += [] if following == "\n" else [(following, "'")]
                self.at += 2
            else:
                end = self._end_of_expansion()
                self.parts.append((self.text[self.at : end], '"'))
                self.at = end
        self.at += 1

    def _closing(self, quote: str) -> int:
        end = self.text.find(quote, self.at + 1)
        if end < 0:
            raise _unclosed(quote)
        return end

    def _end_of_expansion(self) -> int:
        """Return the end of ``$(...)``, ``${...}`` or of backquotes that begin here, or else of one character."""
        text, at = self.text, self.at
        if text[at] == "`":
            return self._closing("`") + 1
        opening = text[at : at + 2]
        if opening not in ("$(", "${"):
            return at + 1
        closing, depth = {"(": ")", "{": "}"}[opening[1]], 0
        for end in range(at + 1, len(text)):
            depth += (text[end] == opening[1]) - (text[end] == closing)
            if not depth:
                return end + 1
        raise _unclosed(opening)


def _unclosed(what: str) -> Fp16PatchError:
    return Fp16PatchError(
        f"the command cannot be read: {what} is not closed",
        code="command-unreadable",
        allowed="a command line as a shell reads it",
        next_step="close the quotes; quote the whole command for your shell, or give its words after a --",
    )
