"""One pass tells everything that is wrong with a spec, each with file and line."""

from __future__ import annotations

from support.boxes import engine, service

from llmsupervisor.plan.check import check

ONE = '[settings.parallel]\nflags = ["--parallel"]\nrequired = true\nexample = 4\nnative = ["num_slots"]\n'


def told(text: str, extra: str = "") -> list[str]:
    checked = check(text, "spec.toml", engine(extra))
    assert (checked.spec is None) == bool(checked.problems)
    return [str(problem) for problem in checked.problems]


def test_a_right_spec_has_no_problems() -> None:
    assert told(service()) == []


def test_text_and_definition_are_told_together_in_the_order_of_the_file() -> None:
    text = service("a", kv_cache_type="q8_o") + service("b", drain_timeout=5) + service("c", batch=1)
    problems = told(text)
    assert [p.split(": ")[:2] for p in problems] == [
        ["spec.toml:6", "services.a.kv_cache_type"],
        ["spec.toml:12", "services.b.drain_timeout"],
        ["spec.toml:18", "services.c.batch"],
    ]
    assert "allowed: f16, q8_0; did you mean q8_0?" in problems[0]


def test_a_service_with_a_wrong_word_is_checked_further() -> None:
    """The text's own errors and the definition's, of one service, in one run."""
    text = service(parallel=0, kv_cache_type="q8") + "num_slots = 3\nthreads = -1\n"
    assert [p.split(": ")[1] for p in told(text, ONE)] == [
        "services.chat.parallel",
        "services.chat.kv_cache_type",
        "services.chat.num_slots",
        "services.chat.threads",
    ]


def test_beside_a_wrong_word_a_missing_key_is_told_too() -> None:
    missing, word = told(service() + "num_slots = 3\n", ONE)
    assert "services.chat.parallel: missing" in missing and "services.chat.num_slots" in word


def test_a_wrong_value_is_not_missing_wherever_it_stands() -> None:
    (problem,) = told('[defaults]\nparallel = "two"\n' + service(), ONE)
    assert problem.startswith("spec.toml:2: defaults.parallel: expected")


def test_what_text_and_definition_both_refuse_is_told_once() -> None:
    text = service(command=["engine"], venv="/v", env={"A": "1"}, secret_env={"A": {"env": "B"}})
    assert [p.split(": ")[1] for p in told(text)] == ["services.chat.venv", "services.chat.secret_env.A"]


def test_a_missing_key_is_told_at_its_service() -> None:
    (problem,) = told("\n" + service(), ONE)
    assert problem.startswith("spec.toml:2: services.chat.parallel: missing")


def test_a_wrong_default_is_told_where_it_stands() -> None:
    (problem,) = told('[defaults]\nkv_cache_type = "q9"\n' + service())
    assert problem.startswith("spec.toml:2: services.chat.kv_cache_type")


def test_a_word_inside_a_table_is_told_at_its_line() -> None:
    (problem,) = told(service() + '[services.chat.env]\nOK = "1"\nPORT_OF_ENGINE = "1"\n', ENV)
    assert problem.startswith("spec.toml:8: services.chat.env.PORT_OF_ENGINE")


ENV = '[settings.parallel]\nenv = "PORT_OF_ENGINE"\n'


def test_a_runtimes_own_word_is_answered_with_ours() -> None:
    (problem,) = told(service(parallel=1) + "num_slots = 3\n", ONE)
    assert problem.startswith("spec.toml:7: services.chat.num_slots") and "parallel" in problem


def test_an_unknown_runtime_has_a_near_name() -> None:
    (problem,) = told(service(runtime="engin"))
    assert problem.startswith("spec.toml:2: services.chat.runtime") and "did you mean engine?" in problem


def test_text_that_is_no_toml_is_one_problem() -> None:
    (problem,) = told(service() + "= 5\n")
    assert problem.startswith("spec.toml:6: ")


def test_without_definitions_the_names_of_runtimes_are_not_checked() -> None:
    assert check(service(), "spec.toml", {}).problems == ()
