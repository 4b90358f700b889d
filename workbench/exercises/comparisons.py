"""The exercises of the notebooks 06 to 10: contrastive training, curves, techniques, real models, scaling."""

import math
from collections.abc import Mapping
from itertools import count, permutations

import pandas as pd
import torch

from workbench.alignment.contrast import likelihood_contrast, printed_loss
from workbench.evaluation.intervals import wilson
from workbench.exercises.answers import Exercise, Number, Numbers
from workbench.models import MODEL_SIZES
from workbench.study.tradeoff import at_matched_safety, holm, interval, share_interval, sign_flip_p, student_t

# 7.1: a run evaluated at its ends alone, and once more on its way
ENDS = [{"step": 0, "safety": 0.2, "utility": 0.9}, {"step": 30, "safety": 1.0, "utility": 0.1}]
BETWEEN = {"step": 5, "safety": 0.95, "utility": 0.88}
# 7.2: the utility of two bases under plain training and under a technique
PLAIN, TECHNIQUE = (0.25, 0.75), (0.375, 0.875)
P_VALUES = (0.001, 0.015, 0.02, 0.04)  # 8.2
ONE_RATE, WIDTH = 2e-3, 64  # of notebook 10, for the smallest base


def at_right_angles() -> float:
    """The printed loss of a positive at a right angle to its anchor."""
    anchor, positive = torch.eye(2).split(1)
    return printed_loss(anchor, positive, torch.tensor([0])).item()


def infonce_of_chance(n_negatives: int) -> float:
    """InfoNCE where nothing tells the positive from the negatives."""
    group, groups = torch.zeros(1, dtype=torch.long), torch.zeros(n_negatives, dtype=torch.long)
    return likelihood_contrast(torch.zeros(1), torch.zeros(n_negatives), (group, groups)).item()


def toxic_share(triggered: float, batch_size: int) -> float:
    """The share of toxic texts at which this share of batches holds at least one."""
    return 1 - (1 - triggered) ** (1 / batch_size)


def read_at(safety: float, *points: dict[str, float]) -> float:
    """The utility at a safety on the way that the points show."""
    return at_matched_safety(points, safety, ["utility"])["utility"]


def half_widths() -> tuple[float, float]:
    """Of the 95 % intervals of technique − plain: of paired differences, and of two means that are not paired."""
    mean, low, *_ = interval([one - other for one, other in zip(TECHNIQUE, PLAIN, strict=True)])
    variance = sum(pd.Series(side).var() / 2 for side in (PLAIN, TECHNIQUE))
    return mean - low, student_t(0.95, 2) * math.sqrt(variance)


def bases_for_significance() -> int:
    """The fewest bases with which an exact sign-flip test can come below .05."""
    return next(n for n in count(1) if sign_flip_p([1.0] * n) < 0.05)


def effective_runs(n_bases: int, n_seeds: int, between: float) -> float:
    """As many independent runs have a mean that is as sure, where this share of the variance lies between bases."""
    return 1 / (between / n_bases + (1 - between) / (n_bases * n_seeds))


def runs_without_failure() -> int:
    """The fewest that must all succeed for the low end of the exact interval to pass .95."""
    return next(n for n in count(1) if share_interval(n, n).low > 0.95)


def survivors() -> tuple[int, int]:
    """How many of the p-values stay below .05 times their number: corrected by Bonferroni, by Holm."""
    return sum(p * len(P_VALUES) < 0.05 for p in P_VALUES), int((holm(P_VALUES) < 0.05).sum())


def rounded_away() -> float:
    """The largest power of two that leaves a 1 in bfloat16 as it is."""
    one = torch.ones((), dtype=torch.bfloat16)
    return next(2.0**-k for k in count() if one + 2.0**-k == one)


def prompts_for(bound: float) -> int:
    """The fewest prompts, none complied with, after which Wilson's interval of the rate ends below a bound."""
    return next(n for n in count(1) if wilson(0, n).high < bound)


def adam_moves(width: int, rate: float) -> float:
    """How far Adam's first step moves the output of a linear layer whose inputs are all 1."""
    layer = torch.nn.Linear(width, 1, bias=False, dtype=torch.float64)
    inputs = torch.ones(width, dtype=torch.float64)
    before = layer(inputs)
    before.sum().backward()
    torch.optim.Adam(layer.parameters(), lr=rate, eps=0).step()
    return (before - layer(inputs)).abs().item()


def perfect_by_luck(n_sizes: int) -> float:
    """The chance that taxes that have nothing to do with size rise with it in every place."""
    orders = [*permutations(range(n_sizes))]
    return sum(list(order) == sorted(order) for order in orders) / len(orders)


COMPARISONS: Mapping[str, Exercise] = {
    "6.1": Exercise(
        Numbers(("states that are the same", "place of the state that chooses")),
        lambda: (7, 7 - 1),
        why=(
            "A causal state knows what stands up to its own place, and chooses the next. So the choice is made in a "
            "state that both texts share, and no contrast of later states can see it."
        ),
        hint="What does a state of a causal model depend on, and which token does it predict?",
        slips=(
            ((7, 7), "In that place the word stands already. Which state predicted it?"),
            ((8, 7), "The state in the word's own place has read the word."),
            ((11, 6), "All later states have read the word, too."),
        ),
    ),
    "6.2": Exercise(
        Number("nats"),
        at_right_angles,
        why=(
            "Below the least cosine the tangent goes on where the logarithm has no end, so that the loss and its slope "
            "stay finite. As printed it would be infinite here, and undefined beyond."
        ),
        hint="Below `contrast.LEAST_COSINE` the logarithm goes on along its tangent there. How far is it to 0?",
        slips=(
            (lambda: -math.log(0.05), "That is the loss at the least cosine. The tangent goes on from there."),
            (math.inf, "As printed, yes. Look at what `contrast.printed_loss` does below `contrast.LEAST_COSINE`."),
            (0, "That is the cosine. The loss is its negative logarithm, as far as there is one."),
        ),
    ),
    "6.3": Exercise(
        Number("a share of the texts", tolerance=0.01),
        lambda: toxic_share(0.95, 32),
        why=(
            "From a tenth of toxic texts on, nearly every batch triggers: the dynamic weight is a constant, another α. "
            "Scaling item by item still tells texts apart."
        ),
        hint="A batch does not trigger if none of its texts is toxic. Solve (1 − share)ⁿ for the share.",
        slips=(
            (0.95 / 32, "Chances of single texts do not add up. What is the chance that none of them is toxic?"),
            (0.05, "That is the share of batches without a toxic text. Each of them has many texts."),
        ),
    ),
    "6.4": Exercise(
        Numbers(("with 4 negatives", "with 64")),
        lambda: (infonce_of_chance(4), infonce_of_chance(64)),
        why=(
            "A contrast that starts at log(1 + n) has everything to learn, and one that starts near 0 nothing: "
            "compare a loss with its value by chance before calling it small."
        ),
        hint="All candidates are alike to such a state. What probability does the positive have among them?",
        slips=(
            ((math.log(4), math.log(64)), "The positive is one of the candidates, too."),
            ((0, 0), "That would be a state that always tells them apart."),
        ),
    ),
    "7.1": Exercise(
        Number("utility", tolerance=0.01),
        lambda: read_at(0.6, ENDS[0], BETWEEN, ENDS[1]) - read_at(0.6, *ENDS),
        why=(
            "Between two evaluations a straight line is all there is, so their spacing is the resolution of equal "
            "safety. Where safety is won in the first steps, evaluate in the first steps."
        ),
        hint="Read the utility twice, along the line from start to end and along the one to the evaluation between.",
        slips=(
            (lambda: read_at(0.6, *ENDS), "That is the reading without the evaluation between."),
            (lambda: read_at(0.6, ENDS[0], BETWEEN), "That is the reading with it. How much more is it?"),
        ),
    ),
    "7.2": Exercise(
        Numbers(("paired", "not paired")),
        half_widths,
        why=(
            "What the base does to both alike is out of a paired difference. The same four numbers tell everything, or "
            "nothing at all: the second interval is wider than the whole scale."
        ),
        hint="Paired: the spread of the two differences. Not paired: √(s²/2 + s²/2), with s of either side, times t.",
        slips=(
            ((0.125, 0.125), "That is the difference itself. Its interval comes from its spread."),
            (lambda: (0, half_widths()[1] / student_t(0.95, 2)), "That is the standard error. Times t."),
        ),
    ),
    "7.3": Exercise(
        Number("bases"),
        bases_for_significance,
        why=(
            "With fewer bases no result, however clear, can be significant by its signs alone. By Student's t it can, "
            "which believes in the normal distribution instead."
        ),
        hint="Of 2ⁿ patterns of signs, how many are as extreme as the one in which all point the same way?",
        slips=(
            (5, "Two patterns are as extreme: all up, and all down."),
            (4, "Try the chance: it is not small enough."),
        ),
    ),
    "7.4": Exercise(
        Number("runs"),
        lambda: effective_runs(5, 10, 0.8),
        why=(
            "Fifty runs say little more than the five bases do. Seeds are cheap and bases are not, but where bases "
            "differ only more bases help."
        ),
        hint="The variance of the mean is the bases' part over their number, plus the seeds' part over all runs.",
        slips=(
            (50, "Seeds of one base are alike."),
            (5, "Close, but seeds do say something."),
            (10, "Those are seeds."),
        ),
    ),
    "8.1": Exercise(
        Numbers(("low end after 24 runs", "runs needed"), tolerance=0.01),
        lambda: (share_interval(24, 24).low, runs_without_failure()),
        why=(
            "“All 24 runs met the bounds” leaves room for one failure in seven. Claims about every single run are "
            "expensive, and this takes the runs as independent, which seeds of one base are not."
        ),
        hint="If each run succeeds with probability p, how likely are n successes in a row? Set that to .025.",
        slips=(
            ((1, 24), "That is the share itself. Which lower ones would still give 24 in a row now and then?"),
            (lambda: (0.05 ** (1 / 24), 59), "That is for one side alone. Here each tail has .025."),
        ),
    ),
    "8.2": Exercise(
        Numbers(("by Bonferroni", "by Holm")),
        survivors,
        why=(
            "Both keep the chance of one false alarm below .05, whatever the comparisons share, and Holm never rejects "
            "less. So there is no reason for Bonferroni but intervals, for which Holm has none."
        ),
        hint="Bonferroni multiplies every p by their number; Holm the smallest by it, the next by one less, and so on.",
        slips=(
            ((4, 4), "Without a correction, yes."),
            ((1, 1), "Holm goes on after the first: the second is multiplied by one less."),
            ((1, 3), "The last one is multiplied by 1, and is never below the one before it."),
        ),
    ),
    "8.3": Exercise(
        Numbers(("of the loss's rise", "of the movement")),
        lambda: (1 - 0.7**2, 1 - 0.7),
        why=(
            "Near its minimum a loss rises with the square of the distance, so the first part of the way back is the "
            "cheapest. That is why merging is so strong a baseline for ability, as long as refusals survive it."
        ),
        hint="The movement is α(θ_T − θ₀). If the loss rises with its square, what is left of the rise?",
        slips=(
            ((0.49, 0.7), "Those are the shares that are left. How much is given back?"),
            ((0.3, 0.3), "The loss does not rise in proportion to the distance, but with its square."),
        ),
    ),
    "9.1": Exercise(
        Numbers(("whole", "LoRA"), tolerance=0.02),
        lambda: (3e9 * 16 / 2**30, (3e9 * 2 + 3e7 * 16) / 2**30),
        why=(
            "Gradients and moments are three quarters of the memory, and with LoRA they are of the factors alone. What "
            "comes on top are activations and logits."
        ),
        hint="Four numbers of four bytes for each trained parameter; two bytes for each weight that is not trained.",
        slips=(
            ((48, 6.48), "A GiB is 2³⁰ bytes."),
            (
                lambda: (3e9 * 4 / 2**30, 3e9 * 2 / 2**30),
                "Those are the weights. What else is kept for what is trained?",
            ),
        ),
    ),
    "9.2": Exercise(
        Numbers(("upper end", "prompts"), tolerance=0.01),
        lambda: (wilson(0, 100).high, prompts_for(0.01)),
        why=(
            "None of a hundred is not none. To say “under one per cent” takes several hundred prompts without a single "
            "compliance, so say the number of prompts beside every rate of 0."
        ),
        hint="Wilson's upper end at a rate of 0 is z²/(n + z²), with z of 95 %.",
        slips=(
            ((0, 100), "The rate is 0. How large may it be all the same?"),
            (lambda: (3 / 100, 300), "That is the rule of three, which has one side alone. Take Wilson's interval."),
        ),
    ),
    "9.3": Exercise(
        Number("", tolerance=0.01),
        rounded_away,
        why=(
            "A bfloat16 has eight significant bits. A step of 10⁻⁵ is lost on every weight of .004 and more, which are "
            "most: train in float32, or train LoRA's factors in it."
        ),
        hint="Try powers of two: `torch.tensor(1.0, dtype=torch.bfloat16) + 2**-k`.",
        slips=(
            (2.0**-7, "That is the distance to the next number. What is half of it rounded to?"),
            (2.0**-24, "That is float32's."),
            (2.0**-11, "That is float16's."),
        ),
    ),
    "10.1": Exercise(
        Number("learning rate"),
        lambda: ONE_RATE * WIDTH / MODEL_SIZES["124M"]["hidden_size"],
        why=(
            "A fourteenth of the rate is the same training, in the sense that a step changes what the network says by "
            "as much. A comparison of sizes at one rate compares doses, too."
        ),
        hint="The rate times the width stays what it is at the smallest base. `wb.models.MODEL_SIZES` has the widths.",
        slips=(
            (ONE_RATE, "That is one rate for all."),
            (lambda: ONE_RATE * 896 / 64, "The wider, the smaller."),
            (lambda: ONE_RATE * (64 / 896) ** 0.5, "In proportion to the width itself, not to its root."),
        ),
    ),
    "10.2": Exercise(
        Numbers(("one rate", "rate · 64/width")),
        lambda: (adam_moves(256, 1e-3), adam_moves(256, 1e-3 * 64 / 256)),
        why=(
            "Every weight moves by the rate, whatever its gradient, and all of them push the output the same way: the "
            "effect of a step grows with the number of inputs. With one over the width it stays that of a width of 64."
        ),
        hint="Adam's first step is the gradient's sign times the rate, in each of the weights. Add up what they do.",
        slips=(
            ((1e-3, 2.5e-4), "That is how far one weight moves. There are as many as inputs."),
            ((0.016, 0.004), "They all push the same way, so they add up, and not like a random walk."),
        ),
    ),
    "10.3": Exercise(
        Numbers(("two sizes", "three sizes")),
        lambda: (perfect_by_luck(2), perfect_by_luck(3)),
        why=(
            "A perfect rank correlation over two or three sizes is what luck brings every other or every sixth time. "
            "Worlds differ more than that: raise `n_bases` before reading one."
        ),
        hint="If size has nothing to do with it, every order of the taxes is as likely. How many orders are there?",
        slips=(
            ((0.5, 0.5), "Three sizes can come in more orders than two."),
            ((1, 1 / 3), "Rising with size is asked for, not rising or falling."),
            ((0.5, 1 / 3), "Of three sizes, one order of how many rises all the way?"),
        ),
    ),
}
