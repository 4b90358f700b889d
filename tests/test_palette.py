"""Looks are fixed: one per technique whatever else is drawn, one symbol per pipeline, told apart by all readers."""

import os
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from workbench.views import palette, theme

# What readers see (Machado, Oliveira & Fernandes 2009, severity 1), for linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
APART = 0.06  # in Oklab, three times what is just noticed side by side
# The techniques of the study with their names in the records, and the arms of the contrastive study.
SAFETY = {
    "plain": "plain", "LoRA": "lora", "frozen embeddings": "frozen", "embedding noise": "plain",
    "confidence weighting": "confidence_weighting", "replay": "replay", "KL to base": "kl", "EWC": "ewc",
    "merged, α .9": "merge", "merged by layers": "merge_hma", "OGPSA": "gradient_projection",
    "update projection": "update_projection", "update projection, Adam's metric": "metric_update_projection",
    "A-GEM": "gem_gradient", "GEM": "gem_gradient", "PCGrad": "pcgrad", "SafeGrad": "safegrad",
    "null space of activations": "null_space", "projected and restored": "gradient_projection_restored",
    "LoRA, update projection": "lora+update_projection", "update projection, merged": "update_projection+merge",
    "replay, frozen": "frozen+replay", "replay, noise": "replay", "replay, frozen, noise": "frozen+replay",
    "attention alone, replay": "frozen+replay", "attention alone, replay, noise": "frozen+replay",
    "attention alone, mixup, replay": "frozen+mixup+replay", "LoRA, replay, noise": "lora+replay",
}  # fmt: skip
ARMS = (
    "cross-entropy", "cross-entropy + KL", "filtered data", "filtered data + KL", "CDA", "SentenceDebias, by group",
    "SentenceDebias, by adjective", "instruction", "unlikelihood", "printed", "printed, dynamic scaling", "InfoNCE",
    "positives beside, α 4", "positives alone + KL", "likelihood contrast", "likelihood contrast, α 4 + KL",
    "parting, α 8 + KL", "predicting state", "predicting state, α 8 + KL", "predicting state, scaled per item + KL",
    "predicting state and positives, α 8 + KL",
)  # fmt: skip
DRAWN = {
    "safety": {label: palette.family_or(technique, label) for label, technique in SAFETY.items()},
    "contrastive": {arm: palette.family_or("plain", arm) for arm in ARMS},
}


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """Björn Ottosson's colour space, in which distances are about as they are seen."""
    cones = np.array(
        [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    )
    seen = np.array(
        [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    )
    return seen @ np.cbrt(cones @ np.clip(light, 0, 1))


def apart(one: str, other: str, sight: str) -> float:
    """The distance of two colours for a reader."""
    first, second = (oklab(np.array(SIGHTS[sight]) @ linear(colour)) for colour in (one, other))
    return float(np.linalg.norm(first - second))


def test_the_measure_of_distance_knows_what_readers_confuse():
    assert apart("#FFFFFF", "#000000", "normal") == pytest.approx(1, abs=1e-3)
    assert apart("#D55E00", "#5A8A00", "protanopia") < 0.5 * apart("#D55E00", "#5A8A00", "normal")


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("drawn", DRAWN)
def test_any_two_techniques_drawn_together_differ_in_colour_or_in_fill(drawn, sight):
    looks = palette.styles(DRAWN[drawn])
    assert len(looks) == len(DRAWN[drawn])
    near = {
        (one, other): round(apart(looks[one].colour, looks[other].colour, sight), 3)
        for one, other in combinations(looks, 2)
        if looks[one].fill == looks[other].fill and apart(looks[one].colour, looks[other].colour, sight) < APART
    }
    assert not near


@pytest.mark.parametrize("sight", SIGHTS)
def test_domains_are_told_apart(sight):
    assert min(apart(one, other, sight) for one, other in combinations(theme.DOMAINS, 2)) >= APART


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_technique_keeps_its_look_whatever_else_is_drawn(drawn):
    everything = palette.styles(DRAWN[drawn])
    for seed in range(20):
        some = random.Random(seed).sample([*DRAWN[drawn].items()], 5)
        for label, look in palette.styles(dict(some)).items():
            settings = [other for other in DRAWN[drawn] if other != label and look == everything[other]]
            assert look == everything[label] or settings  # one of two settings that words do not tell apart
    assert palette.styles({"plain": "plain"})["plain"].colour == palette.colour_of("plain")


def test_settings_of_a_technique_keep_its_hue_and_differ():
    labels = {f"update projection, rank {rank}": "update_projection" for rank in range(1, 9)}
    looks = palette.styles(labels)
    assert looks == palette.styles(dict(reversed(labels.items())))
    assert len({*looks.values()}) == len(labels)
    assert looks["update projection, rank 1"] == palette.style_of("update_projection")
    assert {look.colour for look in [*looks.values()][:4]} == {palette.colour_of("update_projection")}


def test_settings_of_plain_training_alone_take_hues():
    doses = {"SFT, lr 0.002": "plain", "SFT, lr 0.0007": "plain", "DPO alone": "plain", "SFT→DPO": "plain"}
    looks = palette.styles(doses)
    assert {*looks} == {*doses} and [look.colour for look in looks.values()] == [*theme.DOMAINS[:4]]
    assert looks == palette.styles(dict(reversed(doses.items())))
    beside = palette.styles(doses | {"replay": "replay"})  # a technique among them: grey is what they are measured by
    assert beside["DPO alone"].colour == palette.colour_of("plain")


def test_what_is_added_to_a_technique_shows_in_its_fill():
    fills = {label: palette.style_of("replay", label).fill for label in ("replay", "replay, noise", "replay, frozen")}
    assert [*fills.values()] == ["", "-dot", "-open"]
    assert palette.style_of("lora").fill == "" and palette.style_of("lora+replay").fill == "-open"
    assert palette.style_of("plain", "plain").dash == "solid"


@pytest.mark.parametrize(
    ("pipeline", "symbol"),
    [
        ("sft", "circle"), ("DPO", "square"), ("sft->dpo", "diamond"), ("SFT → DPO", "diamond"), ("sft+dpo", "diamond"),
        ("contrastive", "triangle-up"), ("grpo", "hexagon"), ("", "circle"),
    ],
)  # fmt: skip
def test_a_pipeline_has_one_symbol(pipeline, symbol):
    assert palette.symbol_of(pipeline) == symbol
    assert palette.Style("#000000", "solid", "-open").symbol(pipeline) == f"{symbol}-open"


@pytest.mark.parametrize(
    ("technique", "family"),
    [
        ("update projection, per tensor, refresh 1", "update_projection"),
        ("gradient_projection+merge", "gradient_projection"),
        ("OGPSA, refresh 10", "gradient_projection"),
        ("no projection", "plain"),
        ("gradient projection + restore", "restore"),
        ("plain, validated merging", "merge"),
        ("A-GEM", "conflict"),
        ("gem_gradient", "gem"),
        ("pcgrad", "pcgrad"),
        ("safegrad+merge", "safegrad"),
        ("ewc+merge", "ewc"),
        ("confidence_weighting", "confidence"),
        ("lora+merge", "lora"),
        ("merge_hma", "hma"),
        ("HMA, 2 parts", "hma"),
        ("brand new", "brand new"),
    ],
)
def test_a_label_belongs_to_the_family_that_shapes_it(technique, family):
    assert palette.family_of(technique) == family


@pytest.mark.parametrize(
    ("technique", "label", "family"),
    [
        ("plain", "parting + KL", "parting"),
        ("plain", "unlikelihood", "unlikelihood"),
        ("plain", "unfiltered data", "plain"),
        ("gem_gradient", "A-GEM", "conflict"),
        ("sentence_debias", "likelihood, debiased", "sentence_debias"),
        ("replay", "likelihood", "replay"),
    ],
)
def test_where_the_technique_says_little_the_label_says_the_family(technique, label, family):
    assert palette.family_of(palette.family_or(technique, label)) == family


def test_an_unknown_technique_keeps_its_look_in_another_process():
    names = [f"brand new {i}" for i in range(12)]
    code = f"from workbench.views import palette; print(*(palette.style_of(n) for n in {names}), sep='|')"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip().split("|") == [str(palette.style_of(name)) for name in names]


@pytest.mark.parametrize("page", theme.PAGE.values())
@pytest.mark.parametrize(
    "colour",
    [theme.NEUTRAL, *theme.DOMAINS, *palette.SPARE, *dict.fromkeys(f.colour for f in palette.FAMILIES.values())],
)
def test_every_colour_keeps_a_contrast_of_3_on_both_pages(colour, page):
    light, dark = sorted((float(linear(tone) @ [0.2126, 0.7152, 0.0722]) for tone in (colour, page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3
