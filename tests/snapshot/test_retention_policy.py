"""The snapshots that rules keep: examples, a simple model, and properties of all rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from jmapfs.snapshot.prune import UNLIMITED, RetentionPolicy, dates_to_keep

RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def at(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H%M%SZ").replace(tzinfo=UTC)


# --- Examples


# Fri 25 Dec 2020 is in week 52, Fri 1 Jan 2021 in week 53 of 2020, Mon 4 Jan in week 1 of 2021.
HISTORY = [
    "2019-06-30T235959Z",
    "2020-12-25T100000Z",
    "2020-12-31T235959Z",
    "2021-01-01T000000Z",
    "2021-01-03T120000Z",
    "2021-01-04T080000Z",
    "2021-01-04T085959Z",
    "2021-01-04T090000Z",
]
NEWEST = "2021-01-04T090000Z"

EXAMPLES: list[tuple[RetentionPolicy, dict[str, list[str]]]] = [
    (RetentionPolicy(), {}),
    (RetentionPolicy(last=1), {NEWEST: ["last"]}),
    (RetentionPolicy(last=2), {"2021-01-04T085959Z": ["last"], NEWEST: ["last"]}),
    (RetentionPolicy(last=100), {one: ["last"] for one in HISTORY}),
    (RetentionPolicy(last=UNLIMITED), {one: ["last"] for one in HISTORY}),
    (RetentionPolicy(hourly=1), {NEWEST: ["hourly"]}),
    # 08:00:00 and 08:59:59 are of one hour, 09:00:00 is of the next.
    (
        RetentionPolicy(hourly=3),
        {
            "2021-01-03T120000Z": ["hourly"],
            "2021-01-04T085959Z": ["hourly"],
            NEWEST: ["hourly"],
        },
    ),
    # Days without a snapshot do not count: the third last day that has one is New Year.
    (
        RetentionPolicy(daily=3),
        {
            "2021-01-01T000000Z": ["daily"],
            "2021-01-03T120000Z": ["daily"],
            NEWEST: ["daily"],
        },
    ),
    # A second apart, and in different days, months and years, but in one week.
    (
        RetentionPolicy(weekly=3),
        {
            "2020-12-25T100000Z": ["weekly"],
            "2021-01-03T120000Z": ["weekly"],
            NEWEST: ["weekly"],
        },
    ),
    (
        RetentionPolicy(monthly=2),
        {"2020-12-31T235959Z": ["monthly"], NEWEST: ["monthly"]},
    ),
    (
        RetentionPolicy(yearly=3),
        {
            "2019-06-30T235959Z": ["yearly"],
            "2020-12-31T235959Z": ["yearly"],
            NEWEST: ["yearly"],
        },
    ),
    # There are fewer years than that; the oldest snapshot is the newest of its year already.
    (
        RetentionPolicy(yearly=10),
        {
            "2019-06-30T235959Z": ["yearly"],
            "2020-12-31T235959Z": ["yearly"],
            NEWEST: ["yearly"],
        },
    ),
    (
        RetentionPolicy(last=1, monthly=1, yearly=2),
        {"2020-12-31T235959Z": ["yearly"], NEWEST: ["last", "monthly", "yearly"]},
    ),
]


@pytest.mark.parametrize(("policy", "expected"), EXAMPLES)
def test_rules_keep_the_expected_dates(
    policy: RetentionPolicy, expected: dict[str, list[str]]
) -> None:
    assert dates_to_keep(map(at, HISTORY), policy) == {
        at(one): why for one, why in expected.items()
    }


@pytest.mark.parametrize("rule", RULES)
def test_the_same_week_of_another_year_is_another_period(rule: str) -> None:
    # Both are at midnight, on the tenth of January, and in week 2.
    history = [at("2022-01-10T000000Z"), at("2023-01-10T000000Z")]
    assert list(dates_to_keep(history, replace(RetentionPolicy(), **{rule: 2}))) == history


@pytest.mark.parametrize(
    ("policy", "oldest"),
    [
        (RetentionPolicy(monthly=1), None),
        (RetentionPolicy(monthly=2), ["monthly (oldest)"]),
        (RetentionPolicy(monthly=UNLIMITED), ["monthly (oldest)"]),
        (RetentionPolicy(daily=2), None),
        (RetentionPolicy(daily=3, yearly=2), ["daily (oldest)", "yearly (oldest)"]),
        (RetentionPolicy(daily=3, last=3), ["last", "daily (oldest)"]),
    ],
)
def test_the_oldest_is_kept_until_there_are_enough_periods(
    policy: RetentionPolicy, oldest: list[str] | None
) -> None:
    history = [at("2024-02-01T000000Z"), at("2024-02-01T120000Z"), at("2024-02-29T000000Z")]
    result = dates_to_keep(history, policy)
    assert result.get(history[0]) == oldest
    assert ("last" in result.get(history[1], [])) == (policy.last == 3)


def test_no_dates_are_kept_if_there_are_none() -> None:
    assert dates_to_keep([], RetentionPolicy(last=3, daily=UNLIMITED)) == {}


def test_dates_are_ordered_from_the_oldest() -> None:
    history = [at(one) for one in HISTORY]
    assert (
        list(dates_to_keep(reversed(history), RetentionPolicy(last=UNLIMITED, yearly=1))) == history
    )


def test_a_policy_knows_if_it_has_rules() -> None:
    assert not RetentionPolicy().has_rules
    for rule in RULES:
        assert replace(RetentionPolicy(), **{rule: 1}).has_rules


# --- A model

counts = st.none() | st.just(UNLIMITED) | st.integers(1, 12)
policies = st.builds(RetentionPolicy, *[counts] * len(RULES))


@st.composite
def histories(draw: st.DrawFn) -> list[datetime]:
    """Dates that are close to each other in many ways, some across the end of a year."""
    begin = draw(
        st.sampled_from(["2020-02-28T220000Z", "2020-12-27T235800Z", "1999-12-31T235958Z"])
    )
    steps = st.one_of(
        st.integers(1, 3),
        st.integers(1, 5000),
        st.integers(1, 40).map(lambda days: days * 86400),
        # The same week, or the same day, of another year.
        st.sampled_from([364, 365, 366, 371]).map(lambda days: days * 86400),
    )
    moments = [at(begin)]
    for seconds in draw(st.lists(steps, max_size=40)):
        moments.append(moments[-1] + timedelta(seconds=seconds))
    return draw(st.permutations(moments))


def period(rule: str, taken: datetime) -> object:
    match rule:
        case "last":
            return taken
        case "hourly":
            return taken.strftime("%Y%m%d %H")
        case "daily":
            return taken.date()
        case "weekly":
            return taken.date() - timedelta(days=taken.weekday())
        case "monthly":
            return date(taken.year, taken.month, 1)
        case _:
            return taken.year


def model(history: list[datetime], rule: str, count: int) -> set[datetime]:
    """Keep the maxima of the newest periods, and the minimum of all if there are too few."""
    groups: dict[object, set[datetime]] = {}
    for taken in history:
        groups.setdefault(period(rule, taken), set()).add(taken)
    newest = sorted((max(group) for group in groups.values()), reverse=True)
    if count == UNLIMITED or len(newest) < count:
        return {*newest, min(history)}
    return set(newest[:count])


@given(histories(), policies)
@example([at("2020-01-01T000000Z")], RetentionPolicy(yearly=2))
def test_it_agrees_with_a_model(history: list[datetime], policy: RetentionPolicy) -> None:
    expected: dict[datetime, set[str]] = {}
    for rule in RULES:
        count = getattr(policy, rule)
        for taken in model(history, rule, count) if count is not None else ():
            expected.setdefault(taken, set()).add(rule)
    result = dates_to_keep(history, policy)
    assert {one: {reason.split()[0] for reason in why} for one, why in result.items()} == expected


# --- Properties


@given(histories(), policies)
def test_the_newest_is_always_kept(history: list[datetime], policy: RetentionPolicy) -> None:
    assume(policy.has_rules)
    assert max(history) in dates_to_keep(history, policy)


@given(histories(), policies)
def test_pruning_twice_changes_nothing(history: list[datetime], policy: RetentionPolicy) -> None:
    once = dates_to_keep(history, policy)
    assert dates_to_keep(once, policy) == once


@given(histories(), policies, st.sampled_from(RULES), st.integers(1, 5) | st.none())
def test_a_higher_count_never_keeps_less(
    history: list[datetime], policy: RetentionPolicy, rule: str, more: int | None
) -> None:
    count = getattr(policy, rule)
    assume(count != UNLIMITED)
    changed = replace(policy, **{rule: UNLIMITED if more is None else (count or 0) + more})
    assert dates_to_keep(history, policy).keys() <= dates_to_keep(history, changed).keys()


@given(histories(), policies)
def test_rules_together_keep_what_each_keeps(
    history: list[datetime], policy: RetentionPolicy
) -> None:
    alone = [replace(RetentionPolicy(), **{rule: getattr(policy, rule)}) for rule in RULES]
    assert set(dates_to_keep(history, policy)) == set().union(
        *(dates_to_keep(history, one) for one in alone)
    )


@given(histories(), policies, st.integers(0, 30))
def test_removing_a_date_that_no_rule_keeps_changes_nothing(
    history: list[datetime], policy: RetentionPolicy, number: int
) -> None:
    """A killed prune has removed only some of them, and the next one goes on."""
    result = dates_to_keep(history, policy)
    superfluous = sorted(set(history) - set(result))[:number]
    assert dates_to_keep([one for one in history if one not in superfluous], policy) == result
