from __future__ import annotations

from dataclasses import replace

import pytest
from result_records import RECORDS, record_of

from toolkit.base.errors import UsageError
from toolkit.results.comparison import Across, compare_results
from toolkit.results.figures import FigureName
from toolkit.results.record import BenchRecord

BASE = [10.0, 10.2, 9.9, 10.1, 10.0]
FASTER = [12.0, 12.1, 11.8, 12.2, 12.0]


def other_device(record: BenchRecord) -> BenchRecord:
    return replace(record, device=replace(record.device, model="EX-200"))


def other_model(record: BenchRecord) -> BenchRecord:
    return replace(record, model=replace(record.model, name="gemma-3n-E2B-it-int8", sha256="0" * 64))


@pytest.mark.parametrize(
    ("figure", "verdict"), [("decode_tokens_per_s", "faster"), ("init_s", "slower"), ("peak_memory_bytes", "more")]
)
def test_the_verdict_is_of_the_figures_own_sense(figure: FigureName, verdict: str) -> None:
    up = compare_results([record_of(BASE, figure=figure)], [record_of(FASTER, figure=figure)]).tests[0]
    assert up.verdict == verdict
    assert up.found.ratio == pytest.approx(1.2)
    down = compare_results([record_of(FASTER, figure=figure)], [record_of(BASE, figure=figure)]).tests[0]
    assert {up.verdict, down.verdict} in ({"faster", "slower"}, {"more", "less"})


def test_equal_results_show_no_difference_and_few_show_nothing() -> None:
    assert compare_results([record_of(BASE)], [record_of(BASE)]).tests[0].verdict == "no difference shown"
    assert compare_results([record_of(BASE)], [record_of(FASTER[:4])]).tests[0].verdict == "too few values"


def test_runs_of_one_configuration_are_taken_together() -> None:
    found = compare_results([record_of(BASE), record_of(BASE[::-1])], [record_of(FASTER)]).tests[0]
    assert (found.found.base.n, found.found.new.n) == (10, 5)


def test_each_test_and_configuration_is_compared_with_its_own() -> None:
    found = compare_results(RECORDS, RECORDS)
    rows = [(item.configuration, item.test) for item in found.tests]
    assert len(rows) == len(set(rows)) == 4 + 4 + 4 + 4 + 2 + 1 + 4
    assert {item.found.ratio for item in found.tests} == {1.0}
    assert not found.only_in_base and not found.only_in_new


@pytest.mark.parametrize(
    ("change", "across", "words"),
    [
        (other_device, "device", ["device Example EX-100 in the base, Example EX-200 in the new"]),
        (other_model, "model", ["gemma-3n-E2B-it-int4 E2B int4 (ca0df2c95aa1)", "gemma-3n-E2B-it-int8"]),
        (lambda record: other_device(other_model(record)), "device,model", ["EX-200", "it-int8"]),
    ],
)
def test_another_device_or_model_is_refused_with_what_differs_unless_asked(
    change: object, across: str, words: list[str]
) -> None:
    assert callable(change)
    new = [change(record_of(FASTER))]
    with pytest.raises(UsageError) as caught:
        compare_results([record_of(BASE)], new)
    assert all(word in str(caught.value) for word in [*words, f"pass --across {across}"])
    wanted: list[Across] = [what for what in ("device", "model") if what in across]
    found = compare_results([record_of(BASE)], new, across=wanted)
    assert found.tests[0].verdict == "faster"
    assert found.tests[0].differences[0].startswith(f"{across.split(',')[0]}: ")


def test_emulated_results_are_never_taken_for_a_devices() -> None:
    device = replace(RECORDS[0].device, emulated=True)
    with pytest.raises(UsageError, match=r"Example EX-100 \(emulated\)"):
        compare_results([record_of(BASE)], [record_of(BASE, device=device)])


def test_another_runner_or_start_is_not_the_same_configuration() -> None:
    with pytest.raises(UsageError, match=r"warm.* against .*cold"):
        compare_results([record_of(BASE)], [record_of(BASE, start="cold")])


def test_across_models_each_side_holds_one() -> None:
    base = [record_of(BASE), other_model(record_of(BASE))]
    with pytest.raises(UsageError, match="wanted one model on each side"):
        compare_results(base, [record_of(FASTER)], across=["model"])


def test_what_may_explain_a_difference_is_said() -> None:
    device = replace(RECORDS[0].device, fingerprint="other/build")
    new = record_of(FASTER, device=device, tool="gemma-edge 9", flags=("throttled",))
    found = compare_results([record_of(BASE)], [new])
    build, tool = found.tests[0].differences
    assert build.startswith("build: example/ex100") and build.endswith("against other/build")
    assert tool == "tool: gemma-edge 0.1.0 against gemma-edge 9"
    assert found.tests[0].notes == ("throttled (new)",)


def test_what_one_side_lacks_is_listed() -> None:
    found = compare_results(RECORDS[:3], RECORDS[2:5])
    assert len(found.only_in_base) == 1 and len(found.only_in_new) == 2
    assert found.only_in_base[0].startswith("gemma-3n-E2B-it-int4 E2B litert_lm_advanced_main cpu 4 threads warm")


def test_regressions_are_shown_ones_beyond_the_limit() -> None:
    found = compare_results([record_of(FASTER)], [record_of(BASE)])
    assert found.tests[0].worsening == pytest.approx(1 / 6)
    assert len(found.regressions(0.1)) == 1
    assert not found.regressions(0.2)
    noisy = compare_results([record_of([10.0, 20.0, 30.0, 40.0, 50.0])], [record_of([9.0, 19.0, 25.0, 41.0, 52.0])])
    assert not noisy.regressions(0.0)


def record_with(**tests: list[float]) -> BenchRecord:
    """A record with these tests, whose figures are all rates; `pp512` is a prefill's."""
    figures: dict[str, FigureName] = {"pp512": "prefill_tokens_per_s", "tg128": "decode_tokens_per_s"}
    iterations = tuple(
        replace(item, figures={figures[test]: values[i] for test, values in tests.items() if i < len(values)})
        for i, item in enumerate(record_of(BASE).iterations)
    )
    return record_of(BASE, tests={test: figures[test] for test in tests}, iterations=iterations)


@pytest.mark.parametrize(
    "new", [record_with(tg128=BASE), record_with(pp512=[], tg128=BASE)], ids=["absent", "no value"]
)
def test_a_test_with_values_on_one_side_alone_is_listed(new: BenchRecord) -> None:
    base, listed = record_with(pp512=BASE, tg128=BASE), "pp512 of gemma-3n-E2B-it-int4 E2B litert_lm_advanced_main cpu"
    found = compare_results([base], [new])
    assert [item.test for item in found.tests] == ["tg128"]
    assert [text.partition(" 4 threads")[0] for text in found.only_in_base] == [listed] and not found.only_in_new
    swapped = compare_results([new], [base])
    assert swapped.only_in_new == found.only_in_base and not swapped.only_in_base
    again = compare_results([base], [new, base])
    assert len(again.tests) == 2 and not again.only_in_base, "another run of the configuration has the values"


def test_a_test_with_another_figure_is_another_test() -> None:
    found = compare_results([record_of(BASE)], [record_of(BASE, figure="prefill_tokens_per_s")])
    assert not found.tests
    assert found.only_in_base[0].startswith("tg128 (decode_tokens_per_s) of gemma-3n")
    assert found.only_in_new[0].startswith("tg128 (prefill_tokens_per_s) of gemma-3n")


def test_a_base_of_zero_leaves_the_other_tests_compared() -> None:
    zero = [0.0] * 5
    found = compare_results([record_with(pp512=zero, tg128=BASE)], [record_with(pp512=BASE, tg128=FASTER)])
    assert [(item.verdict, item.is_judged) for item in found.tests] == [("base not above 0", False), ("faster", True)]
    assert not found.regressions(0.0)
    same = compare_results([record_with(pp512=zero)], [record_with(pp512=zero)])
    assert [(item.verdict, item.is_judged) for item in same.tests] == [("base not above 0", True)]
