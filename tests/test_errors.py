"""Errors of tasks that run at the same time."""

from __future__ import annotations

import pytest

from jmapfs.errors import BusyError, JmapfsError, UnreachableError, lone_errors


def raise_group(*errors: Exception) -> None:
    with lone_errors():
        raise ExceptionGroup("tasks", errors)


def test_one_error_leaves_its_groups() -> None:
    with pytest.raises(ZeroDivisionError):
        raise_group(ExceptionGroup("inner", [ZeroDivisionError()]))


def test_of_several_expected_errors_the_first_is_raised() -> None:
    inner = ExceptionGroup("inner", [UnreachableError("2"), BusyError("3")])
    with pytest.raises(JmapfsError, match="1"):
        raise_group(JmapfsError("1"), inner)


def test_a_bug_is_not_hidden_by_an_expected_error() -> None:
    with pytest.raises(ExceptionGroup):
        raise_group(JmapfsError("1"), ZeroDivisionError())
