"""The decision tree that volunteers walk down: which questions there are, and after which answers each is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rarezoo.cli import UserError, did_you_mean
from rarezoo.votes.tree_files import SCHEMA_FOLDER, read_tree, tree_names

# A suffix that fewer questions share is taken for a part of their names.
QUESTIONS_OF_A_CAMPAIGN = 3


@dataclass(frozen=True)
class Question:
    """One question of a decision tree.

    Attributes
    ----------
    name : as in the label columns, which are `name_answer`
    answers : in the order of the label columns
    asked_after : label columns of the answers that lead here, any of them; empty for a question that is always asked
    start, stop : the answers' columns
    """

    name: str
    answers: tuple[str, ...]
    asked_after: tuple[str, ...]
    start: int
    stop: int

    @property
    def label_cols(self) -> tuple[str, ...]:
        """Label columns of the answers."""
        return tuple(f"{self.name}_{answer}" for answer in self.answers)


@dataclass(frozen=True)
class Schema:
    """A decision tree, with its questions in the order of the label columns."""

    questions: tuple[Question, ...]

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], source: str = "schema") -> Schema:
        """Read a tree written as question -> {answers, asked_after}.

        Parameters
        ----------
        tree : asked_after is null, one label column, or a list of them, of which any leads to the question
        source : named in errors

        Raises
        ------
        UserError
            for a tree without questions, a question without answers, duplicate answers, unknown parents, a cycle
        """
        if not isinstance(tree, Mapping) or not tree:
            raise UserError(f"{source}: holds no questions. Write question: {{answers: [...], asked_after: null}}.")
        questions: list[Question] = []
        start = 0
        for name, entry in tree.items():
            answers, asked_after = _read_entry(str(name), entry, source)
            questions.append(Question(str(name), answers, asked_after, start, start + len(answers)))
            start += len(answers)
        schema = cls(tuple(questions))
        schema._check(source)
        return schema

    @cached_property
    def label_cols(self) -> tuple[str, ...]:
        """Names of all answers' columns, QUESTION_ANSWER."""
        return tuple(column for question in self.questions for column in question.label_cols)

    @cached_property
    def membership(self) -> Tensor:
        """(answers, questions) float32, 1 where the answer belongs to the question."""
        matrix = torch.zeros(len(self.label_cols), len(self.questions))
        for index, question in enumerate(self.questions):
            matrix[question.start : question.stop, index] = 1.0
        return matrix

    def question_of(self, device: torch.device | str = "cpu") -> Tensor:
        """(answers,) int64, index of the question that each answer belongs to; kept on each device it was asked for."""
        device = torch.device(device)
        if device not in self._question_of:
            owner = [index for index, question in enumerate(self.questions) for _ in question.answers]
            self._question_of[device] = torch.tensor(owner, device=device)
        return self._question_of[device]

    @cached_property
    def campaigns(self) -> dict[str, tuple[int, ...]]:
        """Indices of the questions of each campaign, by the suffix after the last hyphen, as in `bar-dr5`.

        Empty unless every question has a suffix that at least three share: a tree of one campaign without suffixes has
        names such as `disk-edge-on`, of which `on` is no campaign.
        """
        found: dict[str, list[int]] = {}
        for index, question in enumerate(self.questions):
            found.setdefault(question.name.rpartition("-")[2] if "-" in question.name else "", []).append(index)
        if "" in found or min(map(len, found.values())) < QUESTIONS_OF_A_CAMPAIGN:
            return {}
        return {suffix: tuple(indices) for suffix, indices in found.items()}

    @cached_property
    def parents_first(self) -> tuple[int, ...]:
        """Indices of the questions, each after all the questions that lead to it."""
        leads_from = [{self._owner[column] for column in question.asked_after} for question in self.questions]
        order: dict[int, None] = {}
        left = list(range(len(self.questions)))
        while ready := [index for index in left if leads_from[index] <= order.keys()]:
            order.update(dict.fromkeys(ready))
            left = [index for index in left if index not in order]
        return tuple(order)

    def p_asked(self, vote_fractions: Tensor) -> Tensor:
        """Probability that each question is asked: the product along its parents, summed over several of one question.

        Answers of one question exclude each other, so that smooth OR featured has the sum of both. Parents that belong
        to different questions are taken as independent ways to be asked.

        Parameters
        ----------
        vote_fractions : (..., answers)

        Returns
        -------
        (..., questions)
        """
        asked: dict[int, Tensor] = {}
        for index in self.parents_first:
            ways = [asked[parent] * _total(vote_fractions, answers) for parent, answers in self._ways[index].items()]
            if not ways:
                asked[index] = torch.ones_like(vote_fractions[..., 0])
            elif len(ways) == 1:
                asked[index] = ways[0]
            else:
                asked[index] = 1 - torch.stack([1 - way for way in ways]).prod(0)
        return torch.stack([asked[index] for index in range(len(self.questions))], dim=-1)

    def to_tree(self) -> dict[str, dict[str, list[str]]]:
        """The tree as plain lists, as `from_tree` reads it."""
        return {q.name: {"answers": list(q.answers), "asked_after": list(q.asked_after)} for q in self.questions}

    def __getstate__(self) -> dict[str, Any]:
        # Without what is derived from the questions, which may lie on a device.
        return {"questions": self.questions}

    @cached_property
    def _question_of(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _owner(self) -> dict[str, int]:
        return {column: index for index, question in enumerate(self.questions) for column in question.label_cols}

    @cached_property
    def _ways(self) -> list[dict[int, list[int]]]:
        # For each question, the answers' columns that lead to it, by the question that they belong to.
        column_of = {column: index for index, column in enumerate(self.label_cols)}
        ways: list[dict[int, list[int]]] = []
        for question in self.questions:
            of_parent: dict[int, list[int]] = {}
            for column in question.asked_after:
                of_parent.setdefault(self._owner[column], []).append(column_of[column])
            ways.append(of_parent)
        return ways

    def _check(self, source: str) -> None:
        if len(set(self.label_cols)) < len(self.label_cols):
            twice = next(col for col in self.label_cols if self.label_cols.count(col) > 1)
            raise UserError(f"{source}: the answer column '{twice}' is there twice. Rename or remove one.")
        for question in self.questions:
            for column in question.asked_after:
                if column not in self._owner:
                    raise UserError(
                        f"{source}: question '{question.name}' is asked after '{column}', no answer of this tree. "
                        + did_you_mean(column, self.label_cols)
                    )
        if len(self.parents_first) < len(self.questions):
            names = [q.name for i, q in enumerate(self.questions) if i not in self.parents_first]
            raise UserError(
                f"{source}: the questions {', '.join(names)} wait for each other. Break the cycle in asked_after."
            )


def _read_entry(name: str, entry: Any, source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not isinstance(entry, Mapping) or "answers" not in entry:
        raise UserError(
            f"{source}: question '{name}' has no answers. Write {name}: {{answers: [...], asked_after: null}}."
        )
    if unknown := set(entry) - {"answers", "asked_after"}:
        wrong = str(sorted(unknown)[0])
        raise UserError(f"{source}: question '{name}' has '{wrong}'. {did_you_mean(wrong, ['answers', 'asked_after'])}")
    answers = entry["answers"]
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not answers:
        raise UserError(f"{source}: question '{name}' has answers {answers!r}. Give a list of at least one answer.")
    if odd := [answer for answer in answers if not isinstance(answer, str)]:
        raise UserError(
            f"{source}: question '{name}' has the answer {odd[0]!r}, read as {type(odd[0]).__name__}. Put it in quotes."
        )
    parents = entry.get("asked_after") or []
    return tuple(answers), (parents,) if isinstance(parents, str) else tuple(str(parent) for parent in parents)


def _total(vote_fractions: Tensor, answers: list[int]) -> Tensor:
    total = vote_fractions[..., answers[0]]
    for answer in answers[1:]:
        total = total + vote_fractions[..., answer]
    return total


def load_schema(name_or_path: str | Path) -> Schema:
    """Load a decision tree by the name of a file in conf/schema, or from a YAML file of one's own.

    Either may be put together from others of its folder, named in its `defaults`.

    Raises
    ------
    UserError
        if there is no such tree, or it is not well formed
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SCHEMA_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        raise UserError(
            f"schema '{name_or_path}' does not exist. {did_you_mean(str(name_or_path), tree_names())} "
            "Or give the path of a .yaml file."
        )
    return Schema.from_tree(read_tree(path), str(path))


def resolve_schema(config: Mapping[str, Any]) -> Schema:
    """Schema from a configuration's `schema` group: either the tree itself or {path: file}."""
    if set(config) == {"path"}:
        return load_schema(Path(str(config["path"])))
    return Schema.from_tree(config)
