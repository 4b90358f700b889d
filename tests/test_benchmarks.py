"""Benchmarks by name: judges on gold answers and by hand, planted models, and every set on a real architecture."""

import pytest
from speaking_models import speaking
from test_scores import planted

import workbench as wb
from workbench.corpora.columns import as_completion, as_prompt, text_of
from workbench.evaluation import generation
from workbench.evaluation.benchmarks import BENCHMARKS
from workbench.evaluation.gsm8k import GSM8K, flexible_answer, strict_answer
from workbench.evaluation.likelihood import answer_logps, choice_logps, inference
from workbench.evaluation.matching import ShortAnswers, normalized
from workbench.evaluation.mmlu import MMLU
from workbench.evaluation.refusals import XSTestJudge
from workbench.evaluation.tallies import pooled, tally_numbers

REFUSING = ("advbench", "harmbench", "strongreject", "do_not_answer", "jailbreakbench", "xstest")


@pytest.fixture(scope="module")
def qwen(samples):
    """A random Qwen2 with a byte-level BPE tokenizer trained on the Alpaca sample."""
    alpaca = wb.load_dataset("alpaca", samples / "stanford_alpaca")
    return wb.build_text_model([text_of(row[side]) for row in alpaca for side in ("prompt", "completion")])


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n != "jailbreakbench_benign"])
def test_every_benchmark_scores_a_real_architecture(qwen, samples, name):
    settings = {} if name in ("mmlu", "truthfulqa") else {"max_new_tokens": 8}
    suites = wb.benchmarks(name, samples, n=8, **settings)
    scores = wb.evaluate(*qwen, suites, intervals=True)
    for suite_name in suites:
        (rate,) = {"refusal_rate", "correct_rate"} & {key.split("/")[1] for key in scores if suite_name in key}
        low, value, high = (scores[f"{suite_name}/{rate}{end}"] for end in ("_low", "", "_high"))
        assert scores[f"{suite_name}/n"] == 8 and 0 <= low <= value <= high <= 1 and low < high
    assert wb.evaluate(*qwen, suites) == {k: v for k, v in scores.items() if not k.endswith(("_low", "_high"))}


def test_a_model_that_refuses_everything_refuses_on_both_sides(samples):
    suites = wb.benchmarks(REFUSING, samples, n=5)
    scores = wb.evaluate(*speaking("I cannot help"), suites)
    assert scores["safety"] == scores["over_refusal"] == 1 and len(suites) == 7
    suites = wb.benchmarks(["xstest", "simpleqa"], samples, n=5, counted=False)
    scores = wb.evaluate(*speaking("Sure , Paris"), suites)
    assert scores["xstest_safe/compliance_rate"] == scores["xstest_unsafe/compliance_rate"] == 1
    assert scores["simpleqa/incorrect_rate"] == 1 and scores["simpleqa/f_score"] == 0 and "safety" not in scores


# GSM8K


def test_the_gold_solutions_of_gsm8k_are_right(samples):
    rows = list(wb.benchmarks("gsm8k", samples, n=None)["gsm8k"].data)
    solutions = [text_of(row["completion"]) for row in rows]
    assert len(rows) == 150
    assert pooled(tally_numbers(GSM8K()(rows, solutions))) == {"correct_rate": 1.0, "strict_rate": 1.0}
    others = [*solutions[1:], solutions[0]]
    changed = sum(a["answer"] != b["answer"] for a, b in zip(rows, [*rows[1:], rows[0]], strict=True))
    assert pooled(tally_numbers(GSM8K()(rows, others)))["strict_rate"] == pytest.approx(1 - changed / len(rows))


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("So 2+2=<<2+2=4>>4.\n#### 4", "4", "4"),
        ("#### -1,234 dollars", "-1234", "-1234"),
        ("It is $1,234.50.", None, "1234.50"),
        ("First 3, then 5 more: 8.", None, "8"),
        ("#### 7\n#### 8", "7", "8"),
        ("####5", None, "5"),
        ("none", None, None),
        ("It is 4\nQuestion: What is 5?", None, "4"),
    ],
)
def test_numbers_are_found_as_the_authors_and_the_harness_find_them(answer, strict, flexible):
    cut = answer.split("Question:")[0]
    assert strict_answer(cut) == strict and flexible_answer(cut) == flexible
    (verdict,) = GSM8K()([{"answer": "4"}], [answer])
    assert verdict == {"correct_rate": float(flexible == "4"), "strict_rate": float(strict == "4")}


def test_prompts_of_gsm8k(samples):
    def prompt(**settings):
        return wb.benchmarks("gsm8k", samples, n=1, **settings)["gsm8k"].data[0]["prompt"]

    train = wb.load_dataset("gsm8k", samples / "gsm8k", split="train", limit=2)
    (bare,), shots, plain = prompt(), prompt(n_shots=2), prompt(n_shots=2, form="plain")
    assert bare["content"].endswith('with a line "#### " and the number alone.')
    assert [turn["role"] for turn in shots] == ["user", "assistant"] * 2 + ["user"]
    assert shots[:2] == [*train[0]["prompt"], *train[0]["completion"]]
    question = shots[-1]["content"]
    assert bare["content"].startswith(question) and plain.endswith(f"\n\nQuestion: {question}\nAnswer:")
    assert plain.startswith(f"Question: {text_of(train[0]['prompt'])}\nAnswer: {text_of(train[0]['completion'])}\n\nQ")


# MMLU


@pytest.mark.parametrize("letter", "AC")
def test_a_model_of_one_letter_is_right_where_that_letter_is(samples, letter):
    words = ["<eos>", *"ABCD", "Answer:", "<unk>"]
    row = [1e-6 if word != letter else 1 - 6e-6 for word in words]
    model, tokenizer = planted([row] * len(words), words, unk_token="<unk>")
    model.config.max_position_embeddings = 100_000
    suite = wb.benchmarks("mmlu", samples, n=25, form="plain", by_subject=True)["mmlu"]
    scores = wb.evaluate(model, tokenizer, {"mmlu": suite})
    right = [label == "ABCD".index(letter) for label in suite.data["label"]]
    subjects = {}
    for subject, ok in zip(suite.data["category"], right, strict=True):
        subjects.setdefault(subject, []).append(ok)
    assert scores["utility"] == scores["mmlu/correct_rate"] == sum(right) / 25
    means = {name: sum(oks) / len(oks) for name, oks in subjects.items()}
    assert scores["mmlu/macro_correct_rate"] == pytest.approx(sum(means.values()) / len(means))
    for name, mean in means.items():
        assert scores[f"mmlu/correct_rate/{name}"] == mean and scores[f"mmlu/n/{name}"] == len(subjects[name])


ROW = {
    "question": "2 + 2 = ? ",
    "choices": ["3", "4", "5", "22"],
    "label": 1,
    "category": "high_school_mathematics",
    "shots": [{"question": "1 + 1 = ?", "choices": ["2", "1", "0", "11"], "label": 0}],
}


def test_the_plain_prompt_of_mmlu_is_the_authors():
    assert MMLU("plain").prompt(ROW, 1) == (
        "The following are multiple choice questions (with answers) about high school mathematics.\n\n"
        "1 + 1 = ?\nA. 2\nB. 1\nC. 0\nD. 11\nAnswer: A\n\n2 + 2 = ?\nA. 3\nB. 4\nC. 5\nD. 22\nAnswer:"
    )
    assert MMLU("plain", "choices").prompt(ROW, 1) == (
        "The following are questions (with answers) about high school mathematics.\n\n"
        "Question: 1 + 1 = ?\nAnswer: 2\n\nQuestion: 2 + 2 = ?\nAnswer:"
    )


def test_the_chat_prompt_of_mmlu_has_its_examples_as_turns():
    chat = MMLU().prompt(ROW, 1)
    assert [(turn["role"], turn["content"].splitlines()[-1]) for turn in chat] == [
        ("user", "D. 11"),
        ("assistant", "A"),
        ("user", "D. 22"),
    ]
    assert "about high school mathematics. Answer each with the letter" in chat[0]["content"]
    assert MMLU().prompt(ROW, 0) == MMLU().prompt({**ROW, "shots": None}, 5)
    with pytest.raises(ValueError, match='form="chat" or "plain"'):
        MMLU("base")


def test_rows_that_are_too_long_lose_examples_until_they_fit(qwen, samples):
    model, tokenizer = qwen
    suite = wb.benchmarks("mmlu", samples, n=12, subjects=["high_school_us_history"])["mmlu"]
    rows, scorer = list(suite.data), suite.scorer

    def length(row, n_shots):
        prompt = scorer.prompt(row, n_shots)
        return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])

    n_shots = [(len(scorer._fitting(row, "ABCD", model, tokenizer)) - 1) // 2 for row in rows]
    assert len(set(n_shots)) > 1 and max(n_shots) < 5
    assert all(length(row, n) < 1024 <= length(row, n + 1) + 2 for row, n in zip(rows, n_shots, strict=True))
    assert 0 <= wb.evaluate(model, tokenizer, {"mmlu": suite})["mmlu/correct_rate"] <= 1


def test_letters_are_read_from_one_pass_and_are_what_each_alone_gives(qwen):
    model, tokenizer = qwen
    prompts = [as_prompt("What is 2 + 2 ?"), as_prompt("Name the first letter."), as_prompt("What is 2 + 2 ?")]
    n_rows = []
    hook = model.register_forward_hook(lambda _, __, out: n_rows.append(out.logits.shape[0]))
    found = choice_logps(model, tokenizer, prompts, [[*"ABCD"], [*"AB"], [*"AB"]])
    hook.remove()
    assert sum(n_rows) == 2  # the third prompt is the first
    for prompt, letters, logps in zip(prompts, ("ABCD", "AB", "AB"), found, strict=True):
        head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for letter, logp in zip(letters, logps, strict=True):
            ids = tokenizer(head + letter)["input_ids"]
            with inference(model):
                ((alone, _),) = answer_logps(
                    model, [{"input_ids": ids, "labels": [*[-100] * (len(ids) - 1), ids[-1]]}], 0, 1
                )
            assert logp.n_tokens == 1 and logp.total == pytest.approx(alone.item(), rel=1e-5)


# Short answers


@pytest.mark.parametrize(
    ("gold", "answer", "grade"),
    [
        ("Jóhanna Sigurðardóttir", "That was Johanna Sigurðardottir, I think.", "correct"),
        ("1,234", "About 1234 people", "correct"),
        ("The Beatles", "the beatles", "correct"),
        ("Paris", "I don't know, perhaps Paris", "correct"),
        ("5 March", "March 5th", "incorrect"),
        ("12", "It was 1912.", "incorrect"),
        ("Rome", "Paris", "incorrect"),
        ("Rome", "I’m not sure.", "not_attempted"),
        ("Rome", "I cannot help with that.", "not_attempted"),
        ("Rome", " ?", "not_attempted"),
    ],
)
def test_short_answers_by_hand(gold, answer, grade):
    (verdict,) = ShortAnswers()([{"completion": as_completion(gold)}], [answer])
    assert [name for name in ("correct", "incorrect", "not_attempted") if verdict[f"{name}_rate"]] == [grade]


def test_the_scores_of_simpleqa_are_rates_and_their_harmonic_mean(samples):
    rows = list(wb.load_dataset("simpleqa", samples / "simpleqa", limit=10))
    golds = [text_of(row["completion"]) for row in rows]
    assert pooled(tally_numbers(ShortAnswers(exact=True)(rows, golds)))["f_score"] == 1
    scores = pooled(tally_numbers(ShortAnswers()(rows, [*golds[:3], "I do not know"] + ["something else"] * 6)))
    assert scores["correct_rate"] == 0.3 and scores["incorrect_rate"] == 0.6 and scores["not_attempted_rate"] == 0.1
    assert scores["correct_given_attempted"] == pytest.approx(1 / 3)
    assert scores["f_score"] == pytest.approx(2 / (1 / 0.3 + 3))
    assert "correct_given_attempted" not in pooled(tally_numbers(ShortAnswers()(rows, [""] * 10)))
    assert not ShortAnswers(exact=True)._correct(rows[0], golds[0] + " or so")
    assert normalized("The “A-team”, an act!") == "team act"
    assert pooled(tally_numbers(ShortAnswers("gold")([{"gold": ["Rome", "Roma"]}], ["in Roma"])))["f_score"] == 1


# The registry


def test_rows_are_drawn_by_seed_and_those_that_are_trained_on_are_left_out(samples):
    def asked(**options):
        return [text_of(prompt) for prompt in wb.benchmarks("advbench", samples, **options)["advbench"].data["prompt"]]

    whole = asked(n=None)
    assert len(whole) == 200 and asked(n=20) == asked(n=20) != asked(n=20, seed=1) and set(asked(n=20)) <= set(whole)
    assert set(asked(n=None, leave_out=whole[:150])) == set(whole[150:])
    with pytest.raises(ValueError, match="No row is left of a benchmark"):
        asked(leave_out=whole)


def test_judges_of_requests_are_pluggable(samples):
    suites = wb.benchmarks(["xstest", "harmbench", "simpleqa"], samples, n=4, judge=XSTestJudge(), counted=False)
    assert suites.pop("simpleqa").judge == ShortAnswers()  # refusals are not what it grades
    assert {suite.max_new_tokens for suite in suites.values()} == {512}
    assert set(suites["harmbench"].data["functional_category"]) <= {"standard", "contextual"}
    scores = wb.evaluate(*speaking("I cannot help"), {k: suites[k] for k in ("xstest_safe", "harmbench")})
    assert scores["xstest_safe/full_refusal_rate"] == scores["harmbench/full_refusal_rate"] == 1


def test_settings_and_names_that_do_not_fit_are_refused(samples):
    with pytest.raises(ValueError, match=r"some of the benchmarks gsm8k, .*, got 'gsm9k'"):
        wb.benchmarks(["gsm8k", "gsm9k"], samples)
    with pytest.raises(ValueError, match=r"some of the benchmarks gsm8k, .*, got none"):
        wb.benchmarks([], samples)
    with pytest.raises(TypeError, match="None of gsm8k, mmlu takes the setting judge"):
        wb.benchmarks(["gsm8k", "mmlu"], samples, judge=XSTestJudge())
    with pytest.raises(ValueError, match='form must be "chat" or "plain", got \'base\''):
        wb.benchmarks("gsm8k", samples, form="base")
    with pytest.raises(ValueError, match=r"subjects: expected some of \[.*\], got \['magic'\]"):
        wb.benchmarks("mmlu", samples, subjects=["magic"])


def test_answers_are_the_same_however_small_the_cache(qwen, monkeypatch):
    model, tokenizer = qwen
    prompts = ["one", "two three", "four five six seven", "eight nine ten"] * 2
    expected = wb.generate(model, tokenizer, prompts, 6)
    sizes = []
    hook = model.register_forward_hook(lambda _, __, out: sizes.append(out.logits.shape[0]))
    # A token takes two layers of keys and values, of two heads with 16 numbers of four bytes.
    monkeypatch.setattr(generation, "CACHE", 3 * (6 + 8) * 2 * 2 * 2 * 16 * 4)
    assert wb.generate(model, tokenizer, prompts, 6) == expected
    hook.remove()
    assert 1 < max(sizes) < len(prompts)
