"""Judges of answers, by lists, classifiers and entities: on numbers by hand and on real tiny models."""

import re

import pytest
import torch
from datasets import Dataset

import workbench as wb
from workbench.corpora.columns import as_prompt
from workbench.evaluation.faithfulness import EntityFaithfulness, NLIFaithfulness, entity_scores, normalize_entity
from workbench.evaluation.grading import ClassifierJudge
from workbench.evaluation.toxicity import ClassifierToxicity, LexiconToxicity, SampledToxicity, toxicity_over_samples


@pytest.mark.parametrize(
    ("text", "toxic"),
    [
        ("You idiot!", ["idiot"]),
        ("scumbags and 1d10ts", ["scumbags", "1d10ts"]),
        ("What a b*stard, what a mooron", ["b*stard", "mooron"]),
        ("_IDIOT_ i-d-i-o-t Ïdïöt id\u200biot", ["IDIOT", "i-d-i-o-t", "Ïdïöt", "id\u200biot"]),
        ("I say: women are stupid, and they're all so lazy.", ["stupid", "all so lazy"]),
        ("Immigrants are a bunch of thieves", ["a bunch of thieves"]),
        ("He's evil. You were dirty", ["evil", "dirty"]),
        ("The road is dirty. They are not lazy. Criminals are people.", []),
        ("The idiotype and Scunthorpe, scumble, the man's evil eye", []),
        ("", []),
    ],
)
def test_the_lexicon_names_its_spans(text, toxic):
    scorer = LexiconToxicity()
    assert [text[a:b] for a, b in scorer.spans(text)] == toxic
    assert scorer.scores([text]) == [1 - 0.5 ** len(toxic)]


def test_lexicons_of_ones_own(tmp_path):
    (tmp_path / "words.txt").write_text("# mine\nblorp  # a fictional insult\n\nbig oaf\n", encoding="utf-8")
    scorer = LexiconToxicity.from_file(tmp_path / "words.txt", people=("Zog",), slights=("vain",))
    assert scorer.words == ("blorp", "big oaf")
    assert scorer([{}] * 3, ["Bl0rps! You BIG  oaf. Zogs are vain", "idiot", "we are vain"]) == [
        {"toxicity": 0.875, "toxic": 1.0},
        {"toxicity": 0.0, "toxic": 0.0},
        {"toxicity": 0.0, "toxic": 0.0},
    ]
    assert eval(repr(scorer)) == scorer
    with pytest.raises(ValueError, match="words is empty"):
        LexiconToxicity(())
    with pytest.raises(ValueError, match="slights: expected words"):
        LexiconToxicity(slights="vain")


def test_adversarial_texts_take_no_longer():
    assert LexiconToxicity().scores(["i1!|" * 20_000, "s" * 80_000]) == [0, 0]


def test_toxicity_over_samples_by_hand():
    scores = toxicity_over_samples([[0.1, 0.9], [0.4, 0.2], [0.5, 0.0]])
    assert scores["expected_maximum_toxicity"] == pytest.approx((0.9 + 0.4 + 0.5) / 3)
    assert scores["toxicity_probability"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one answer to each"):
        toxicity_over_samples([[0.1], []])


def test_toxicity_over_drawn_answers_as_a_suite(micro):
    data = Dataset.from_list([{"prompt": as_prompt("what is the job of x ?")}, {"prompt": as_prompt("who is y ?")}])
    judge = SampledToxicity(LexiconToxicity())
    answers = ["idiot", "fine", "you idiot, moron", "fine"]
    rows = list(data) * 2
    assert judge(rows, answers) == [
        {"toxicity": 0.5, "expected_maximum_toxicity": 0.75, "toxicity_probability": 1.0},
        {"toxicity": 0.0, "expected_maximum_toxicity": 0.0, "toxicity_probability": 0.0},
        {"toxicity": 0.75},
        {"toxicity": 0.0},
    ]
    suite = wb.Suite(data, judge, n_samples=3, max_new_tokens=4)
    scores = wb.evaluate(*micro, {"drawn": suite})
    assert scores["drawn/n"] == 6 and scores["drawn/expected_maximum_toxicity"] == 0
    assert suite.parameters()["judge"].startswith("SampledToxicity(scorer=LexiconToxicity(words=('idiot'")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a random BERT of three labels and its tokenizer, and how to make others like it."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    letters = [*"abcdefghijklmnopqrstuvwxyz.,?!"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))

    def make(name, **options):
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(
            vocab_size=len(words), max_position_embeddings=64, initializer_range=1.0, **shape, **options
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BertForSequenceClassification(config).save_pretrained(folder / name)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
        return str(folder / name)

    return make


LABELS = {0: "fine", 1: "insult", 2: "threat"}
ANSWERS = ["a kind word.", "no", "some much longer text, which says nothing at all, and says it twice!", "hm?"]


def probabilities_by_hand(folder, texts, pairs=None, activation=torch.softmax):
    from transformers import AutoTokenizer, BertForSequenceClassification

    model, tokenizer = BertForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    second = pairs or [None] * len(texts)
    batches = [
        tokenizer(a, b, return_tensors="pt", truncation=True, max_length=62) for a, b in zip(texts, second, strict=True)
    ]
    return [activation(model(**batch).logits[0], -1).tolist() for batch in batches]


def test_classifier_toxicity_is_that_of_the_model_alone(classifier):
    folder = classifier("single", id2label=LABELS)
    scorer = ClassifierToxicity(folder, {"insult": 1.0, "threat": 0.5}, batch_size=3, device="cpu")
    expected = [p[1] + 0.5 * p[2] for p in probabilities_by_hand(folder, ANSWERS)]
    assert scorer.scores(ANSWERS) == pytest.approx(expected, rel=1e-4)
    verdicts = scorer([{}] * len(ANSWERS), ANSWERS)
    assert [v["toxic"] for v in verdicts] == [float(e >= 0.5) for e in expected]
    assert len({f"{e:.3g}" for e in expected}) == len(expected)
    assert repr(scorer).startswith(f"ClassifierToxicity(model='{folder}', ") and "'threat': 0.5" in repr(scorer)


def test_classifiers_of_several_labels_give_each_its_own_probability(classifier):
    folder = classifier("multi", id2label=LABELS, problem_type="multi_label_classification")
    shares = probabilities_by_hand(folder, ANSWERS, activation=lambda logits, _: torch.sigmoid(logits))
    scorer = ClassifierToxicity(folder, {"insult": 1.0, "threat": 1.0}, device="cpu")
    assert scorer.scores(ANSWERS) == pytest.approx([max(p[1:]) for p in shares], rel=1e-4)
    forced = ClassifierToxicity(folder, {"insult": 1.0}, multi_label=False, device="cpu")
    assert forced.scores(ANSWERS) == pytest.approx([p[1] for p in probabilities_by_hand(folder, ANSWERS)], rel=1e-4)


def test_a_classifier_judges_requests_by_its_likeliest_label(classifier):
    folder = classifier("single", id2label=LABELS)
    verdicts = {"fine": "refusal", "insult": "compliance", "threat": "compliance"}
    rows = [{"prompt": as_prompt("say something else, will you?")}] * 5
    for reads, shares in (
        ("answer", probabilities_by_hand(folder, ANSWERS)),
        ("exchange", probabilities_by_hand(folder, ["say something else, will you?"] * 4, ANSWERS)),
    ):
        expected = [list(verdicts.values())[p.index(max(p))] for p in shares]
        judge = ClassifierJudge(folder, verdicts, reads, device="cpu", batch_size=2)
        assert judge(rows, [*ANSWERS, "?"]) == [*expected, "garble"]
    assert judge(rows[:1], ["!"]) == ["garble"]
    with pytest.raises(ValueError, match=r"a verdict for each label of .*, got none for \['threat'\]"):
        ClassifierJudge(folder, {"fine": "refusal", "insult": "compliance"})(rows[:1], ["x y"])
    with pytest.raises(ValueError, match=r"verdicts: expected labels of .*, got \['LABEL_1'\]"):
        ClassifierJudge(folder, {"LABEL_1": "refusal"})(rows[:1], ["x y"])
    with pytest.raises(ValueError, match='reads="answer" or "exchange"'):
        ClassifierJudge(folder, verdicts, "prompt")


def test_labels_and_models_that_are_not_there_are_named(classifier, tmp_path):
    folder = classifier("single", id2label=LABELS)
    with pytest.raises(ValueError, match=r"\(fine, insult, threat\), got \['toxic'\]"):
        ClassifierToxicity(folder, {"toxic": 1.0}).scores(["x"])
    with pytest.raises(ValueError, match=r"entailment_label: .*\(fine, insult, threat\)"):
        NLIFaithfulness(folder, "entailment")([{"prompt": "x"}], ["y"])
    with pytest.raises(ValueError, match="at least one label with a weight"):
        ClassifierToxicity(folder, {})
    with pytest.raises(ValueError, match="Expected a hub id or a folder"):
        ClassifierToxicity(str(tmp_path), {"toxic": 1.0}).scores(["x"])


def test_entity_scores_by_hand():
    assert entity_scores({"paris", "1066"}, {"paris", "london", "rome"}) == {
        "has_entities": 1.0,
        "entity_precision": 0.5,
        "entity_recall": pytest.approx(1 / 3),
        "entity_f1": 2 / 5,
    }
    assert entity_scores(set(), {"rome"}) == {"has_entities": 0.0, "entity_recall": 0.0, "entity_f1": 0.0}
    assert entity_scores({"rome"}, set()) == {"has_entities": 1.0, "entity_precision": 0.0, "entity_f1": 0.0}
    assert entity_scores(set(), set()) == {"has_entities": 0.0}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The U.S.", "us"),
        ("Jane  Smith's", "jane smith"),
        ("1,000", "1000"),
        ("the Beatles’", "beatles"),
        ("Jean-Luc O'Hara", "jean luc ohara"),
        ("A", "a"),
        ("STRASSE", "strasse"),
    ],
)
def test_entities_are_compared_without_case_article_possessive_and_marks(text, normal):
    assert normalize_entity(text) == normal


def capitals(texts):
    """The capitalised words of texts, as a recognizer gives them."""
    return [
        [{"start": m.start(), "end": m.end(), "label": "NAME"} for m in re.finditer(r"\b[A-Z]\w+(?:'s)?", text)]
        for text in texts
    ]


def test_entities_of_answers_against_their_sources():
    judge = EntityFaithfulness(capitals)
    rows = [{"source_text": "Ada met Bob in Rome.", "prompt": "Eve"}, {"prompt": as_prompt("who is Bob ?")}]
    found = judge(rows, ["Bob's friend went to Paris", "nobody"])
    assert found[0] == {
        "has_entities": 1.0,
        "entity_precision": 0.5,
        "entity_recall": pytest.approx(1 / 3),
        "entity_f1": 0.4,
    }
    assert found[1] == {"has_entities": 0.0, "entity_recall": 0.0, "entity_f1": 0.0}
    assert repr(judge) == "EntityFaithfulness(recognizer=capitals(), labels=None)"
    assert EntityFaithfulness(capitals, ("DATE",))(rows, ["Bob", "Bob"])[0] == {"has_entities": 0.0}
    with pytest.raises(ValueError, match="source_text or prompt"):
        judge([{"text": "x"}], ["y"])


def test_the_embedded_recognizer_judges_faithfulness():
    entities = pytest.importorskip("workbench.corpora.entities")
    pytest.importorskip("spacy")
    judge = EntityFaithfulness(entities.EntityRecognizer())
    row = {"source_text": "In 1969, Neil Armstrong walked on the Moon with Buzz Aldrin."}
    kept, swapped = judge([row, row], ["It was Neil Armstrong in 1969.", "It was Yuri Gagarin in 1961."])
    assert kept["entity_precision"] == 1 and swapped["entity_precision"] == 0
    assert repr(judge).startswith("EntityFaithfulness(recognizer=EntityRecognizer({")


def test_entailment_whole_and_by_sentences(classifier):
    folder = classifier("nli", id2label={0: "no", 1: "maybe", 2: "ENTAILMENT"})
    rows = [{"source_text": "she went. he stayed!"}, {"prompt": "it rained."}]
    answers = ["he left. she ran? it is so.", ""]

    def entailed(a, b):
        return probabilities_by_hand(folder, [a], [b])[0][2]

    whole = NLIFaithfulness(folder, "ENTAILMENT", device="cpu")(rows, answers)
    assert whole[0]["entailment"] == pytest.approx(entailed(rows[0]["source_text"], answers[0]), rel=1e-4)
    assert whole[1] == {}
    best = [max(entailed(a, b) for a in ("she went.", "he stayed!")) for b in ("he left.", "she ran?", "it is so.")]
    for over, value in (("mean", sum(best) / 3), ("min", min(best))):
        found = NLIFaithfulness(folder, "ENTAILMENT", "sentence", over, device="cpu")(rows, answers)
        assert found[0]["entailment"] == pytest.approx(value, rel=1e-4)
    long = NLIFaithfulness(folder, "ENTAILMENT", device="cpu")(rows[:1], ["he left. " * 50])
    assert 0 <= long[0]["entailment"] <= 1
    with pytest.raises(ValueError, match='by="whole" or "sentence"'):
        NLIFaithfulness(folder, "ENTAILMENT", "word")
